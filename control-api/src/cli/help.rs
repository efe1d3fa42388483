//! Examples and exit codes, as `--help` shows them.

pub(super) const AFTER: &str = "\
Examples:
  outrigger apply -f shop.yaml --wait      put objects in force, and return when they are
  outrigger status                         which proxies have taken what
  outrigger token create -n shop --service-account cart > cart.token

In Kubernetes, the way to the control plane and to proxies is the kubeconfig's, by a port-forward
that is made for each command; nothing has to be exposed. Which mesh is spoken to:
  1. that of the cluster of --kubeconfig or --context, if one of them is given;
  2. that at --server or OUTRIGGER_SERVER, if given;
  3. that of the cluster of KUBECONFIG or ~/.kube/config, if there is one;
  4. that at 127.0.0.1:15010.

Outside Kubernetes, a control API that is not on the loopback wants its root and its token:
  outrigger --server control:15010 --ca root.pem --token-file api.token status
  or in the environment: OUTRIGGER_SERVER, OUTRIGGER_CA, OUTRIGGER_TOKEN_FILE

Exit codes:
  0  done
  1  failed; standard error says why
  2  the command line is not understood
  3  with --wait: a proxy refused it, or has not answered in time

Every command says more with --help.";

pub(super) const APPLY: &str = "\
Examples:
  outrigger apply -f shop.yaml                  all objects of the file, or none if one is wrong
  outrigger apply -f shop.yaml --dry-run        say what is wrong and what would change
  outrigger apply -f shop.yaml --wait --timeout 10s
  kubectl get httproute cart -o yaml | outrigger apply -f -";

pub(super) const DELETE: &str = "\
Examples:
  outrigger delete httproute cart -n shop
  outrigger delete -f shop.yaml --ignore-not-found --wait";

pub(super) const GET: &str = "\
Examples:
  outrigger get service cart -n shop
  outrigger get trafficpolicy cart -n shop -o json";

pub(super) const LIST: &str = "\
Examples:
  outrigger list                        everything
  outrigger list services -n shop
  outrigger list -o yaml > backup.yaml  what `outrigger apply -f` takes again";

pub(super) const STATUS: &str = "\
The columns:
  STATE        current: has taken the newest revision; behind: not yet; rejected: refused part of
               it, see the lines below the table
  RESOURCES    xDS resources that it holds
  CERTIFICATE  time left of its certificate; it is renewed at two thirds of its life";

pub(super) const WATCH: &str = "\
Examples:
  outrigger watch services -n shop
  outrigger watch -o json | jq .deleted";

pub(super) const ENDPOINTS: &str = "\
Examples:
  outrigger endpoints                   of every service
  outrigger endpoints cart -n shop -o json";

pub(super) const REGISTER: &str = "\
Example:
  outrigger endpoint register cart 10.1.0.3 -n shop --port http=9090 --workload cart-3 --zone b";

pub(super) const CONFIG_DUMP: &str = "\
Examples:
  outrigger config-dump shop/cart-1                     everything, as JSON
  outrigger config-dump shop/cart-1 -o table            names and versions
  outrigger config-dump shop/cart-1 -t route --name '|80|'";

pub(super) const TOKEN_CREATE: &str = "\
Example:
  outrigger token create -n shop --service-account cart --ttl 15m > cart.token
  outrigger-proxy run --token-file cart.token ...";

pub(super) const TOKEN_REVOKE: &str = "\
Examples:
  outrigger token list -n shop
  outrigger token revoke 3f9a1c";

pub(super) const COMPLETIONS: &str = "\
Examples:
  outrigger completions bash > /etc/bash_completion.d/outrigger
  outrigger completions fish > ~/.config/fish/completions/outrigger.fish
  outrigger completions zsh > \"${fpath[1]}/_outrigger\"";

pub(super) const CA_ROTATE: &str = "\
Examples:
  outrigger ca rotate                  over twice the life of a certificate
  outrigger ca rotate --overlap 10m    faster: proxies that are not connected meanwhile and do not
                                       come back by a token are locked out
  outrigger ca list                    where it stands";

pub(super) const TOP: &str = "\
Examples:
  outrigger top -n shop                 every pod of the namespace, for five seconds
  outrigger top cart-0 -n shop --window 30s

The columns: IN is what the pod was asked, OUT what it asked others; RPS requests a second, OK the
share that was not answered with 500 or above, P50 and P99 the time to the end of the answer, as
exactly as the histogram's buckets say.";

pub(super) const CHECK: &str = "\
Examples:
  outrigger check --pre && outrigger install | kubectl apply -f -
  outrigger check

Exit codes: 0 all is well, or there are warnings; 1 something is wrong.";

pub(super) const UNINSTALL: &str = "\
Examples:
  outrigger uninstall | kubectl delete -f -           policies and the root's key stay
  outrigger uninstall --purge | kubectl delete -f -   everything goes";

pub(super) const PROXY_CONFIG: &str = "\
Examples:
  outrigger proxy config cart-0 -n shop                        names and versions
  outrigger proxy config cart-0 -n shop -t route -o yaml       what is in the routes";

pub(super) const LOG_LEVEL: &str = "\
Examples:
  outrigger proxy log-level cart-0 -n shop
  outrigger proxy log-level cart-0 -n shop debug";
