//! What has to do with Kubernetes: the manifests of the control plane, and pods with the proxy.

use std::{io::Write, path::Path};

use anyhow::Context as _;

use super::args::{Inject, Install};
use crate::inject;

/// The name of the control plane's Deployment.
pub(super) const CONTROL_PLANE_NAME: &str = "outrigger-control";
const DEFINITIONS: &str = include_str!("../../../deploy/chart/crds/crds.yaml");
const CONTROL_PLANE: &str = include_str!("../../../deploy/kubernetes/outrigger.yaml");
/// A part of what is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manifest {
    /// Of the policies.
    Definitions,
    /// Everything else.
    ControlPlane,
}

/// The objects in it, as they are by default.
pub(super) fn documents(part: Manifest) -> anyhow::Result<Vec<serde_json::Value>> {
    let text = match part {
        Manifest::Definitions => DEFINITIONS,
        Manifest::ControlPlane => CONTROL_PLANE,
    };
    Ok(serde_saphyr::from_multiple(text)?)
}

/// A text in YAML: JSON's are.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// What stands in the manifests, which are the chart with its defaults, and what is to stand there.
fn changes(args: &Install) -> Vec<(String, String)> {
    let defaults = Install::default();
    let env = |name: &str, value: &str| format!("{{name: {name}, value: {}}}", quoted(value));
    type Field = fn(&Install) -> &str;
    let variables: [(&str, Field); 5] = [
        ("OUTRIGGER_PROXY_IMAGE", |args| &args.proxy_image),
        ("OUTRIGGER_PROXY_PULL_POLICY", |args| &args.pull_policy),
        ("OUTRIGGER_TRUST_DOMAIN", |args| &args.trust_domain),
        ("OUTRIGGER_OTLP_ENDPOINT", |args| &args.otlp_endpoint),
        ("OUTRIGGER_LOG_LEVEL", |args| &args.log_level),
    ];
    let variables =
        variables.map(|(name, field)| (env(name, field(&defaults)), env(name, field(args))));
    let image = |args: &Install| format!("image: {}", quoted(&args.image));
    let pull = |args: &Install| format!("imagePullPolicy: {}", args.pull_policy);
    let replicas = |args: &Install| format!("replicas: {}", args.replicas);
    let fields = [
        (image(&defaults), image(args)),
        (pull(&defaults), pull(args)),
        (replicas(&defaults), replicas(args)),
    ];
    fields.into_iter().chain(variables).collect()
}

/// The manifests, as `args` want them.
pub(super) fn install(args: &Install, out: &mut impl Write) -> anyhow::Result<()> {
    let mut text = CONTROL_PLANE.to_owned();
    for (default, wanted) in changes(args) {
        text = text.replace(&default, &wanted);
    }
    write!(out, "{DEFINITIONS}---\n{text}")?;
    Ok(())
}

/// The manifest with the proxy in its pods; warnings go to `err`.
pub(super) fn inject(
    args: &Inject,
    manifest: &str,
    out: &mut impl Write,
    err: &mut impl Write,
) -> anyhow::Result<()> {
    let trust_bundle = read(&args.trust_bundle)?;
    let settings = inject::Settings {
        image: args.proxy_image.clone(),
        pull_policy: args.pull_policy.clone(),
        control_plane: args.control_plane.clone(),
        trust_domain: args.trust_domain.clone(),
        trust_bundle,
        otlp_endpoint: args.otlp_endpoint.clone(),
    };
    let injected = inject::manifest(manifest, &settings).map_err(|why| anyhow::anyhow!(why))?;
    let (text, said) = injected;
    for line in said {
        writeln!(err, "{line}")?;
    }
    out.write_all(text.as_bytes())?;
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::Value;

    use super::*;
    use crate::cli::args::{Args, Command};

    fn installed(words: &[&str]) -> Vec<Value> {
        let args = Args::try_parse_from([&["outrigger", "install"], words].concat());
        let Command::Install(args) = args.expect("good arguments").command else {
            panic!("install");
        };
        let mut out = Vec::new();
        install(&args, &mut out).expect("written");
        let text = String::from_utf8(out).expect("UTF-8");
        serde_saphyr::from_multiple(&text).expect("YAML")
    }

    fn of<'a>(all: &'a [Value], kind: &str) -> Vec<&'a Value> {
        all.iter().filter(|one| one["kind"] == kind).collect()
    }

    #[test]
    fn the_manifests_say_what_was_asked_for() {
        let all = installed(&[
            "--image=reg.example/control:2",
            "--proxy-image=reg.example/proxy:2",
            "--pull-policy=Always",
            "--replicas=3",
            "--trust-domain=example.org",
            "--otlp-endpoint=http://jaeger:4317",
        ]);
        let deployments = of(&all, "Deployment");
        let spec = &deployments.first().expect("a Deployment")["spec"];
        assert_eq!(spec["replicas"], 3);
        let container = &spec["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], "reg.example/control:2");
        assert_eq!(container["imagePullPolicy"], "Always");
        let env = |name: &str| {
            let all = container["env"].as_array().expect("a list");
            let one = all.iter().find(|one| one["name"] == name);
            one.expect(name)["value"].clone()
        };
        assert_eq!(env("OUTRIGGER_PROXY_IMAGE"), "reg.example/proxy:2");
        assert_eq!(env("OUTRIGGER_PROXY_PULL_POLICY"), "Always");
        assert_eq!(env("OUTRIGGER_TRUST_DOMAIN"), "example.org");
        assert_eq!(env("OUTRIGGER_OTLP_ENDPOINT"), "http://jaeger:4317");
    }

    #[test]
    fn without_wishes_it_is_the_chart_with_its_defaults() {
        let args = Install::default();
        let mut out = Vec::new();
        install(&args, &mut out).expect("written");
        let text = String::from_utf8(out).expect("UTF-8");
        assert!(text.ends_with(CONTROL_PLANE), "defaults differ");
        for (default, wanted) in changes(&args) {
            assert_eq!(default, wanted);
            assert_eq!(CONTROL_PLANE.matches(&default).count(), 1, "{default}");
        }
    }

    #[test]
    fn the_sample_is_valid() {
        let sample = include_str!("../../../deploy/samples/shop.yaml");
        let all: Vec<Value> = serde_saphyr::from_multiple(sample).expect("YAML");
        let mut taken = 0;
        for one in all {
            let version = one["apiVersion"].as_str().expect("an apiVersion");
            if version.starts_with("outrigger.dev/") || version.starts_with("gateway.") {
                crate::model::parse_object(one, "", 0).expect("an object that the mesh takes");
                taken += 1;
            }
        }
        assert_eq!(taken, 4);
    }

    #[test]
    fn every_policy_has_a_definition() {
        let all = installed(&[]);
        let crds = of(&all, "CustomResourceDefinition");
        let kinds = crate::model::Kind::ALL.iter().filter(|kind| {
            let ours = kind
                .api_versions()
                .iter()
                .all(|v| v.starts_with("outrigger.dev/"));
            ours && **kind != crate::model::Kind::Service
        });
        for kind in kinds {
            let crd = crds
                .iter()
                .find(|crd| crd["spec"]["names"]["kind"] == kind.as_str());
            let crd = crd.unwrap_or_else(|| panic!("{kind} has no definition"));
            let plural = crd["spec"]["names"]["plural"].as_str().expect("a plural");
            assert_eq!(crd["metadata"]["name"], format!("{plural}.outrigger.dev"));
        }
    }

    #[test]
    fn ku_11_the_injector_cannot_block_the_cluster() {
        let all = installed(&[]);
        let configurations = of(&all, "MutatingWebhookConfiguration");
        let webhooks = &configurations.first().expect("one")["webhooks"];
        let webhooks = webhooks.as_array().expect("a list");
        assert_eq!(webhooks.len(), 2);
        for webhook in webhooks {
            assert!(webhook["timeoutSeconds"].as_u64() <= Some(5), "{webhook}");
            let terms = &webhook["namespaceSelector"]["matchExpressions"];
            let terms = terms.as_array().expect("a list");
            let names = terms
                .iter()
                .find(|t| t["key"] == "kubernetes.io/metadata.name");
            let names = names.expect("namespaces are told by name");
            assert_eq!(names["operator"], "NotIn");
            let excluded = names["values"].as_array().expect("a list");
            for name in ["kube-system", "outrigger-system"] {
                assert!(excluded.iter().any(|value| value == name), "{name}");
            }
            // Only where somebody asked for the mesh is a pod held while the injector is away.
            let asked = |terms: &Value| {
                let terms = terms["matchExpressions"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let mut asked = terms.iter().filter(|t| t["operator"] == "In");
                asked.any(|term| term["key"] == "outrigger.dev/inject")
            };
            let selectors = [&webhook["namespaceSelector"], &webhook["objectSelector"]];
            assert!(selectors.into_iter().any(asked), "{webhook}");
        }
        let deployments = of(&all, "Deployment");
        assert!(deployments.first().expect("one")["spec"]["replicas"].as_u64() >= Some(2));
    }
}
