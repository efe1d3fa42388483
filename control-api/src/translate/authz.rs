//! Authorization: from policies to RBAC filters. The order is deny, allow, audit.

use std::collections::BTreeMap;

use ipnet::IpNet;
use outrigger_proto::envoy::{
    config::{
        core::v3::CidrRange,
        rbac::v3::{
            Permission, Policy, Principal, Rbac, permission,
            permission::Rule as P,
            principal,
            principal::{Authenticated, Identifier as I},
            rbac,
        },
    },
    extensions::filters::{http::rbac::v3 as http_filter, network::rbac::v3 as network_filter},
    r#type::matcher::v3::{PathMatcher, StringMatcher, path_matcher, string_matcher::MatchPattern},
};

use super::{Viewer, policy::covers, text, workload, world::World};
use crate::model::{Action, AuthorizationPolicySpec, Key, Operation, Source, Spec};

/// The policies that hold for one port of a workload.
#[derive(Debug, Default)]
pub(super) struct Rules<'w> {
    policies: Vec<(&'w Key, &'w AuthorizationPolicySpec)>,
    trust_domain: &'w str,
}

/// One RBAC filter's worth.
#[derive(Debug)]
pub(super) struct Filter {
    /// For people: `deny`, `allow`, `audit`.
    pub(super) name: &'static str,
    rules: Option<Rbac>,
    shadow: Option<Rbac>,
}

impl Filter {
    pub(super) fn http(self) -> http_filter::Rbac {
        http_filter::Rbac {
            rules: self.rules,
            shadow_rules: self.shadow,
            shadow_rules_stat_prefix: "dry_run_".to_owned(),
            ..http_filter::Rbac::default()
        }
    }

    pub(super) fn network(self) -> network_filter::Rbac {
        network_filter::Rbac {
            rules: self.rules,
            shadow_rules: self.shadow,
            stat_prefix: "inbound_".to_owned(),
            shadow_rules_stat_prefix: "dry_run_".to_owned(),
            ..network_filter::Rbac::default()
        }
    }

    /// Nobody may.
    pub(super) fn nobody() -> Self {
        Self {
            name: "strict",
            rules: Some(Rbac {
                action: rbac::Action::Allow.into(),
                ..Rbac::default()
            }),
            shadow: None,
        }
    }
}

impl<'w> Rules<'w> {
    /// For `port` of `viewer`; without one, for the ports of no service.
    pub(super) fn of(world: &'w World, viewer: &Viewer, port: Option<u16>) -> Self {
        let mut policies = Vec::new();
        for object in world.workload_policies(&viewer.namespace) {
            if let Spec::AuthorizationPolicy(spec) = &object.spec
                && workload::aim(&object.key, spec.selector.as_ref(), viewer).is_some()
            {
                policies.push((&object.key, spec.as_ref()));
            }
        }
        for (service, number) in port
            .into_iter()
            .flat_map(|p| world.inbound_services(viewer, p))
        {
            for object in world.attached(service) {
                if let Spec::AuthorizationPolicy(spec) = &object.spec
                    && covers(&spec.target_refs, service, number)
                    && !policies.iter().any(|(key, _)| **key == object.key)
                {
                    policies.push((&object.key, spec.as_ref()));
                }
            }
        }
        Self {
            policies,
            trust_domain: world.trust_domain(),
        }
    }

    /// The filters, in order. On a connection that is not HTTP (`!http`) nothing is known of
    /// requests: an allow rule that asks for them does not match, a deny rule matches without them.
    pub(super) fn filters(&self, http: bool) -> Vec<Filter> {
        let of = |name, action, wire: rbac::Action| {
            let rules = self.rbac(action, wire, |dry_run| !dry_run, http);
            let dry = self
                .policies
                .iter()
                .any(|(_, p)| p.action == action && p.dry_run);
            // What would be if nothing were a dry run: an allow policy adds to those that are in
            // force, and all of them together are what a request has to pass.
            let both = action == Action::Allow;
            let shadow = self.rbac(action, wire, |dry_run| dry_run || both, http);
            let shadow = shadow.filter(|_| dry);
            let some = rules.is_some() || shadow.is_some();
            some.then_some(Filter {
                name,
                rules,
                shadow,
            })
        };
        let all = [
            of("deny", Action::Deny, rbac::Action::Deny),
            of("allow", Action::Allow, rbac::Action::Allow),
            of("audit", Action::Audit, rbac::Action::Log),
        ];
        all.into_iter().flatten().collect()
    }

    fn rbac(
        &self,
        action: Action,
        wire: rbac::Action,
        counts: impl Fn(bool) -> bool,
        http: bool,
    ) -> Option<Rbac> {
        let chosen = self.policies.iter();
        let mut chosen = chosen.filter(|(_, p)| p.action == action && counts(p.dry_run));
        let mut policies = BTreeMap::new();
        let first = chosen.next()?;
        for (key, spec) in std::iter::once(first).chain(chosen) {
            for (i, rule) in spec.rules.iter().enumerate() {
                let operations = rule.to.iter();
                let usable: Vec<_> = operations
                    .filter(|op| http || action != Action::Allow || !op.is_http())
                    .collect();
                if usable.is_empty() && !rule.to.is_empty() {
                    continue;
                }
                let name = format!("{}/{}/{i}", key.namespace, key.name);
                policies.insert(
                    name,
                    Policy {
                        permissions: any_of(usable.into_iter().map(|op| permission(op, http))),
                        principals: any_of_principals(
                            rule.from
                                .iter()
                                .map(|source| principal(source, self.trust_domain)),
                        ),
                        ..Policy::default()
                    },
                );
            }
        }
        // An allow list without entries lets nobody in; an empty deny list keeps nobody out.
        Some(Rbac {
            action: wire.into(),
            policies,
            ..Rbac::default()
        })
    }
}

fn p(rule: P) -> Permission {
    Permission { rule: Some(rule) }
}

fn i(identifier: I) -> Principal {
    Principal {
        identifier: Some(identifier),
    }
}

fn any_of(all: impl Iterator<Item = Permission>) -> Vec<Permission> {
    let all: Vec<_> = all.collect();
    if all.is_empty() {
        vec![p(P::Any(true))]
    } else {
        all
    }
}

fn any_of_principals(all: impl Iterator<Item = Principal>) -> Vec<Principal> {
    let all: Vec<_> = all.collect();
    if all.is_empty() {
        vec![i(I::Any(true))]
    } else {
        all
    }
}

fn either(rules: Vec<Permission>) -> Permission {
    p(P::OrRules(permission::Set { rules }))
}

fn either_id(ids: Vec<Principal>) -> Principal {
    i(I::OrIds(principal::Set { ids }))
}

/// Adds "any of these" and "none of those" to a conjunction.
fn require<T>(
    all: &mut Vec<Permission>,
    (these, none): (&[T], &[T]),
    rule: impl Fn(&T) -> Permission,
) {
    if !these.is_empty() {
        all.push(either(these.iter().map(&rule).collect()));
    }
    if !none.is_empty() {
        let none = either(none.iter().map(&rule).collect());
        all.push(p(P::NotRule(Box::new(none))));
    }
}

fn permission(own: &Operation, http: bool) -> Permission {
    let mut rules = Vec::new();
    let port = |port: &u16| p(P::DestinationPort(u32::from(*port)));
    require(&mut rules, (&own.ports, &own.not_ports), port);
    if http {
        let header =
            |name: &str, matcher: StringMatcher| p(P::Header(text::compared_header(name, matcher)));
        let exact = |method: &str| text::string(MatchPattern::Exact(method.to_owned()));
        let method = |method: &String| header(":method", exact(method));
        require(&mut rules, (&own.methods, &own.not_methods), method);
        let path = |path: &String| {
            let rule = Some(path_matcher::Rule::Path(text::pattern(path)));
            p(P::UrlPath(PathMatcher { rule }))
        };
        require(&mut rules, (&own.paths, &own.not_paths), path);
        let host = |host: &String| {
            let matcher = StringMatcher {
                ignore_case: true,
                ..text::pattern(host)
            };
            header(":authority", matcher)
        };
        require(&mut rules, (&own.hosts, &own.not_hosts), host);
        let headers = own.headers.iter();
        rules.extend(headers.map(|h| p(P::Header(text::header(&h.name, &h.value, h.not)))));
    }
    if rules.is_empty() {
        return p(P::Any(true));
    }
    p(P::AndRules(permission::Set { rules }))
}

fn require_id<T>(
    all: &mut Vec<Principal>,
    (these, none): (&[T], &[T]),
    id: impl Fn(&T) -> Principal,
) {
    if !these.is_empty() {
        all.push(either_id(these.iter().map(&id).collect()));
    }
    if !none.is_empty() {
        let none = either_id(none.iter().map(&id).collect());
        all.push(i(I::NotId(Box::new(none))));
    }
}

fn principal(own: &Source, trust_domain: &str) -> Principal {
    let mut ids = Vec::new();
    let named = |matcher: Option<StringMatcher>| {
        i(I::Authenticated(Authenticated {
            principal_name: matcher,
        }))
    };
    let identity = |identity: &String| match identity.as_str() {
        "*" => named(None),
        full if full.starts_with("spiffe://") || full.starts_with('*') => {
            named(Some(text::pattern(full)))
        }
        short => {
            let (namespace, account) = short.split_once('/').unwrap_or((short, "*"));
            let full = format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}");
            named(Some(text::pattern(&full)))
        }
    };
    require_id(&mut ids, (&own.identities, &own.not_identities), identity);
    let namespace = |namespace: &String| {
        let prefix = format!("spiffe://{trust_domain}/ns/{namespace}/sa/");
        named(Some(text::string(MatchPattern::Prefix(prefix))))
    };
    require_id(&mut ids, (&own.namespaces, &own.not_namespaces), namespace);
    let block = |block: &crate::model::Block| i(I::DirectRemoteIp(cidr(block.0)));
    require_id(&mut ids, (&own.ip_blocks, &own.not_ip_blocks), block);
    i(I::AndIds(principal::Set { ids }))
}

fn cidr(net: IpNet) -> CidrRange {
    CidrRange {
        address_prefix: net.network().to_string(),
        prefix_len: Some(u32::from(net.prefix_len())),
    }
}
