//! Who may call, and where mutual TLS is demanded.

use serde_json::Value;

use super::{ResourceType, SHOP, cart, json, web, world};

/// The chains of the inbound listener by name, with the names of their filters.
fn chains(manifest: &str) -> Vec<(String, Vec<String>)> {
    let listener = json(&world(manifest), &cart(), ResourceType::Listener, "inbound");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let filters = |chain: &Value| -> Vec<String> {
        let all = chain["filters"].as_array().unwrap();
        let short = |name: String| name.rsplit('.').next().unwrap().to_owned();
        all.iter()
            .map(|filter| short(text(&filter["name"])))
            .collect()
    };
    let all = listener["filter_chains"].as_array().unwrap().iter();
    let default = listener.get("default_filter_chain").into_iter();
    all.chain(default)
        .map(|chain| (text(&chain["name"]), filters(chain)))
        .collect()
}

fn names(manifest: &str) -> Vec<String> {
    chains(manifest).into_iter().map(|(name, _)| name).collect()
}

const BARE: &str = "
apiVersion: outrigger.dev/v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  ports: [{port: 80, targetPort: 8080, appProtocol: http}, {name: db, port: 5432, appProtocol: tcp}]
  endpoints: [{address: 10.1.0.2}]
";

fn with(policy: &str) -> String {
    format!("{BARE}\n---\napiVersion: outrigger.dev/v1\n{policy}")
}

#[test]
fn permissive_ports_take_everything() {
    let expected = [
        "5432-mesh-http",
        "5432-mesh-tcp",
        "5432-tcp",
        "5432-tls",
        "8080-mesh-http",
        "8080-mesh-tcp",
        "8080-http",
        "8080-tls",
        "rest-mesh-http",
        "rest-mesh-tcp",
        "passthrough",
    ];
    assert_eq!(names(BARE), expected);
}

#[test]
fn tl_08_strict_workloads_have_mesh_chains_only() {
    let strict =
        with("kind: MutualTLS\nmetadata: {name: s, namespace: shop}\nspec: {mode: strict}");
    assert!(names(&strict).iter().all(|name| name.contains("mesh")));
    let mesh = with(
        "kind: MutualTLS\nmetadata: {name: s, namespace: outrigger-system}\nspec: {mode: strict}",
    );
    assert!(names(&mesh).iter().all(|name| name.contains("mesh")));
    let other = with("kind: MutualTLS\nmetadata: {name: s, namespace: web}\nspec: {mode: strict}");
    assert_eq!(names(&other), names(BARE));
}

#[test]
fn one_strict_port_does_not_fall_through_to_the_others() {
    let policy = "kind: MutualTLS\nmetadata: {name: s, namespace: shop}\nspec: {mode: permissive, \
                  ports: {8080: strict}}";
    let found = chains(&with(policy));
    let of = |name: &str| {
        found
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, filters)| filters)
    };
    assert_eq!(of("8080-http"), None);
    assert_eq!(
        of("8080-strict"),
        Some(&vec!["strict".to_owned(), "tcp_proxy".to_owned()])
    );
    assert!(of("8080-strict-tls").is_some() && of("5432-tcp").is_some());
}

#[test]
fn requests_rules_do_not_hold_where_there_are_no_requests() {
    let policy = |action: &str| {
        with(&format!(
            "kind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{action: \
             {action}, rules: [{{to: [{{methods: [GET]}}]}}]}}"
        ))
    };
    let rbac = |action: &str| {
        let world = world(&policy(action));
        let listener = json(&world, &cart(), ResourceType::Listener, "inbound");
        let chains = listener["filter_chains"].as_array().unwrap().clone();
        let chain = chains
            .into_iter()
            .find(|c| c["name"] == "5432-mesh-tcp")
            .unwrap();
        chain["filters"][0]["typed_config"]["rules"].clone()
    };
    // Nobody is let in because of a method that nobody can see.
    assert_eq!(rbac("allow").get("policies"), None);
    // The deny holds for everybody.
    let denied = rbac("deny");
    let rule = &denied["policies"]["shop/p/0"]["permissions"][0];
    assert_eq!(rule["any"], true);
}

#[test]
fn policies_of_services_hold_for_their_ports_only() {
    let policy = "kind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: \
                  {targetRefs: [{name: cart, port: 80}], rules: [{from: [{namespaces: [web]}]}]}";
    let found = chains(&with(policy));
    let guarded: Vec<_> = found
        .iter()
        .filter(|(_, filters)| filters.iter().any(|f| f == "allow"))
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(guarded, ["8080-mesh-tcp", "8080-tls"]);
    let world = world(&with(policy));
    let listener = json(&world, &cart(), ResourceType::Listener, "inbound").to_string();
    assert!(listener.contains("envoy.filters.http.rbac.allow"));
}

#[test]
fn others_are_not_told_of_policies_that_are_not_for_them() {
    let listener = json(&world(SHOP), &web(), ResourceType::Listener, "inbound").to_string();
    assert!(!listener.contains("rbac"));
}

#[test]
fn of_equally_exact_mutual_tls_policies_the_stricter_wins_port_by_port() {
    let policy = |name: &str, spec: &str| {
        let metadata = format!("{{name: {name}, namespace: shop}}");
        format!(
            "---\napiVersion: outrigger.dev/v1\nkind: MutualTLS\nmetadata: {metadata}\nspec: {spec}\n"
        )
    };
    let open = |names: Vec<String>| -> Vec<String> {
        let plain = |name: &String| !name.contains("mesh") && !name.contains("strict");
        names.into_iter().filter(plain).collect()
    };
    let permissive = policy("a", "{mode: permissive}");
    let strict = policy("b", "{mode: strict}");
    // Whichever comes first.
    for manifest in [
        format!("{BARE}{permissive}{strict}"),
        format!(
            "{BARE}{}{}",
            policy("a", "{mode: strict}"),
            policy("b", "{mode: permissive}")
        ),
    ] {
        assert_eq!(open(names(&manifest)), [""; 0], "{manifest}");
    }
    // One opens 8080 and closes the rest, the other closes 8080 and opens the rest.
    let crossed = format!(
        "{BARE}{}{}",
        policy("a", "{mode: strict, ports: {8080: permissive}}"),
        policy("b", "{mode: permissive, ports: {8080: strict}}")
    );
    assert_eq!(open(names(&crossed)), [""; 0]);
    // Both agree that 8080 is open.
    let agreed = format!(
        "{BARE}{}{}",
        policy("a", "{mode: strict, ports: {8080: permissive}}"),
        permissive.replace("name: a", "name: c")
    );
    assert_eq!(open(names(&agreed)), ["8080-http", "8080-tls"]);
    // A more exact one is not an equal: it may open what the namespace closes.
    let exact = format!(
        "{BARE}{strict}{}",
        policy(
            "c",
            "{selector: {matchLabels: {app: cart}}, mode: permissive}"
        )
    );
    assert!(open(names(&exact)).contains(&"passthrough".to_owned()));
}

type Names = Option<Vec<String>>;

/// The RBAC filters of an opaque chain: what each is for, its policies and its shadow policies.
fn sets(policies: &[&str]) -> Vec<(String, Names, Names)> {
    let world = world(&format!("{BARE}{}", policies.concat()));
    let listener = json(&world, &cart(), ResourceType::Listener, "inbound");
    let chains = listener["filter_chains"].as_array().unwrap().clone();
    let chain = chains
        .into_iter()
        .find(|c| c["name"] == "5432-mesh-tcp")
        .unwrap();
    let filters = chain["filters"].as_array().unwrap().clone();
    let rbac = filters
        .into_iter()
        .filter(|f| f["name"] != "envoy.filters.network.tcp_proxy");
    let names = |rules: &Value| -> Names {
        let rules = rules.as_object()?;
        let policies = rules.get("policies").and_then(Value::as_object);
        Some(
            policies
                .into_iter()
                .flat_map(|p| p.keys().cloned())
                .collect(),
        )
    };
    let one = |filter: Value| {
        let config = &filter["typed_config"];
        let name = filter["name"]
            .as_str()
            .unwrap()
            .rsplit('.')
            .next()
            .unwrap()
            .to_owned();
        (
            name,
            names(&config["rules"]),
            names(&config["shadow_rules"]),
        )
    };
    rbac.map(one).collect()
}

#[test]
fn a_dry_run_shows_what_would_be_denied_if_it_were_in_force() {
    let policy = |name: &str, spec: &str| {
        let metadata = format!("{{name: {name}, namespace: shop}}");
        format!(
            "---\napiVersion: outrigger.dev/v1\nkind: AuthorizationPolicy\nmetadata: {metadata}\n\
             spec: {spec}\n"
        )
    };
    let of = |names: &[&str]| Some(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
    let from = |namespace: &str, more: &str| {
        format!("{{{more} rules: [{{from: [{{namespaces: [{namespace}]}}]}}]}}")
    };
    let (web, dry) = (
        policy("web", &from("web", "")),
        policy("dry", &from("ops", "dryRun: true,")),
    );
    // Alone: nobody is kept out, but everybody else would be.
    assert_eq!(
        sets(&[&dry]),
        [("allow".to_owned(), None, of(&["shop/dry/0"]))]
    );
    // Beside one in force: together they would let both in.
    assert_eq!(
        sets(&[&web, &dry]),
        [(
            "allow".to_owned(),
            of(&["shop/web/0"]),
            of(&["shop/dry/0", "shop/web/0"])
        )]
    );
    assert_eq!(
        sets(&[&web]),
        [("allow".to_owned(), of(&["shop/web/0"]), None)]
    );
    // A deny that is a dry run would keep out what it matches, whatever others do.
    let (deny, tried) = (
        policy("no", &from("bad", "action: deny,")),
        policy("try", &from("odd", "action: deny, dryRun: true,")),
    );
    assert_eq!(
        sets(&[&deny, &tried]),
        [("deny".to_owned(), of(&["shop/no/0"]), of(&["shop/try/0"]))]
    );
}

#[test]
fn the_oldest_of_equal_policies_counts() {
    let manifest = format!(
        "{BARE}
---
apiVersion: outrigger.dev/v1
kind: RateLimit
metadata: {{name: a, namespace: shop, creationTimestamp: '2026-11-02T00:00:00Z'}}
spec: {{requests: 1}}
---
apiVersion: outrigger.dev/v1
kind: RateLimit
metadata: {{name: b, namespace: shop, creationTimestamp: '2026-11-01T00:00:00Z'}}
spec: {{requests: 2}}
"
    );
    let limit = |manifest: &str| {
        let world = world(manifest);
        let listener = json(&world, &cart(), ResourceType::Listener, "inbound").to_string();
        ["1", "2"].map(|n| listener.contains(&format!("\"max_tokens\":{n},")))
    };
    assert_eq!(limit(&manifest), [false, true], "b is older");
    let same = manifest.replace("11-02", "11-01");
    assert_eq!(
        limit(&same),
        [true, false],
        "of the same age the first by name"
    );
}

#[test]
fn telemetry_policies_say_what_has_a_line_in_the_access_log() {
    let logged = |policy: &str| {
        let world = world(&with(policy));
        let names = ["inbound", "outbound"];
        let texts = names.map(|n| json(&world, &cart(), ResourceType::Listener, n).to_string());
        texts.map(|text| text.matches("StdoutAccessLog").count())
    };
    let other = "kind: Telemetry\nmetadata: {name: t, namespace: web}\nspec: {accessLog: false}";
    let [inbound, outbound] = logged(other);
    // Every chain: two for each of two ports and the rest over mutual TLS, two in clear for each
    // port and one for the rest.
    assert_eq!((inbound, outbound), (11, 1));
    let off = "kind: Telemetry\nmetadata: {name: t, namespace: shop}\nspec: {accessLog: false}";
    assert_eq!(logged(off), [0, 0]);
}
