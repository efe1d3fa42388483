//! Virtual hosts by the host that a request names.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use super::table::Index;
use crate::config::route::{Domain, HeaderMods, RetryPolicy, Route, RouteFilters, VirtualHost};

/// What requests to one virtual host have in common.
#[derive(Debug)]
pub struct Host {
    pub name: Arc<str>,
    /// Used by routes that say nothing about retries.
    pub retry: Option<Arc<RetryPolicy>>,
    pub filters: RouteFilters,
    /// Tell the upstream which attempt this is.
    pub attempt_count_header: bool,
    /// The virtual host's own header changes; the route configuration's come after them.
    pub(super) headers: HeaderMods,
    pub(super) config_headers: Arc<HeaderMods>,
    pub(super) routes: Vec<Arc<Route>>,
    pub(super) index: Index,
}

impl Host {
    pub(super) fn new(host: &VirtualHost, config_headers: &Arc<HeaderMods>) -> Self {
        Self {
            name: Arc::clone(&host.name),
            retry: host.retry.clone(),
            filters: host.filters.clone(),
            attempt_count_header: host.attempt_count_header,
            headers: host.headers.clone(),
            config_headers: Arc::clone(config_headers),
            routes: host.routes.clone(),
            index: Index::of(&host.routes),
        }
    }
}

/// Wildcard patterns, grouped by length, longest first, so that the longest is found with one hash
/// look-up per length in use.
type Wildcards = Vec<(usize, HashMap<Box<str>, usize>)>;

/// Finds a virtual host: exact name, then the longest suffix, then the longest prefix, then any.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    all: Vec<Arc<Host>>,
    exact: HashMap<Box<str>, usize>,
    suffixes: Wildcards,
    prefixes: Wildcards,
    any: Option<usize>,
    ignore_port: bool,
}

impl Hosts {
    pub(super) fn new(hosts: &[VirtualHost], headers: HeaderMods, ignore_port: bool) -> Self {
        let headers = Arc::new(headers);
        let mut built = Self {
            ignore_port,
            ..Self::default()
        };
        for host in hosts {
            let at = built.all.len();
            built.all.push(Arc::new(Host::new(host, &headers)));
            for domain in &host.domains {
                built.add(domain, at);
            }
        }
        for wildcards in [&mut built.suffixes, &mut built.prefixes] {
            wildcards.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
        }
        built
    }

    /// Of two equal patterns the first counts; the decoder refuses them anyway.
    fn add(&mut self, domain: &Domain, at: usize) {
        match domain {
            Domain::Exact(name) => {
                self.exact.entry(lower(name).into()).or_insert(at);
            }
            Domain::Suffix(text) => add_wildcard(&mut self.suffixes, text, at),
            Domain::Prefix(text) => add_wildcard(&mut self.prefixes, text, at),
            Domain::Any => {
                self.any.get_or_insert(at);
            }
        }
    }

    /// The virtual host for `authority`, which is compared without regard to case. A port counts as
    /// part of it unless the configuration says otherwise, as in Envoy.
    pub(super) fn find(&self, authority: &str) -> Option<&Arc<Host>> {
        self.position(authority).and_then(|at| self.all.get(at))
    }

    fn position(&self, authority: &str) -> Option<usize> {
        let named =
            !(self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty());
        if !named {
            return self.any;
        }
        let name = if self.ignore_port {
            without_port(authority)
        } else {
            authority
        };
        let name = lower(name);
        // A wildcard stands for one character at least, hence `<`.
        let wildcard = |patterns: &Wildcards, part: fn(&str, usize) -> Option<&str>| {
            patterns
                .iter()
                .filter(|(len, _)| *len < name.len())
                .find_map(|(len, texts)| texts.get(part(&name, *len)?).copied())
        };
        self.exact
            .get(&*name)
            .copied()
            .or_else(|| wildcard(&self.suffixes, |name, len| name.get(name.len() - len..)))
            .or_else(|| wildcard(&self.prefixes, |name, len| name.get(..len)))
            .or(self.any)
    }
}

fn add_wildcard(patterns: &mut Wildcards, text: &str, at: usize) {
    let slot = match patterns.iter().position(|(len, _)| *len == text.len()) {
        Some(slot) => slot,
        None => {
            patterns.push((text.len(), HashMap::new()));
            patterns.len() - 1
        }
    };
    if let Some((_, texts)) = patterns.get_mut(slot) {
        texts.entry(lower(text).into()).or_insert(at);
    }
}

/// Allocates only for names in capitals, which programs do not send.
fn lower(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|c| c.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

/// `authority` split before the colon of its port, if it has one (RFC 3986 §3.2); the colons of a
/// bracketed IPv6 address are none.
pub(super) fn split_port(authority: &str) -> Option<(&str, &str)> {
    let (host, port) = authority.rsplit_once(':')?;
    let digits = port.bytes().all(|c| c.is_ascii_digit());
    let whole = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
    (digits && whole).then_some((host, port))
}

fn without_port(authority: &str) -> &str {
    split_port(authority).map_or(authority, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(domains: &[Domain], ignore_port: bool) -> Hosts {
        let hosts: Vec<_> = domains
            .iter()
            .enumerate()
            .map(|(n, domain)| VirtualHost {
                name: n.to_string().into(),
                domains: vec![domain.clone()],
                routes: Vec::new(),
                headers: HeaderMods::default(),
                retry: None,
                filters: RouteFilters::default(),
                attempt_count_header: false,
            })
            .collect();
        Hosts::new(&hosts, HeaderMods::default(), ignore_port)
    }

    fn check(hosts: &Hosts, table: &[(&str, Option<&str>)]) {
        for (authority, want) in table {
            let found = hosts.find(authority).map(|host| &*host.name);
            assert_eq!(found, *want, "{authority}");
        }
    }

    #[test]
    fn exact_beats_suffix_beats_prefix_beats_any() {
        let hosts = hosts(
            &[
                Domain::Any,
                Domain::Prefix("cart.".into()),
                Domain::Suffix(".example.com".into()),
                Domain::Suffix(".shop.example.com".into()),
                Domain::Exact("cart.shop.example.com".into()),
                Domain::Prefix("cart.shop.".into()),
            ],
            false,
        );
        check(
            &hosts,
            &[
                ("cart.shop.example.com", Some("4")),
                ("CART.Shop.example.com", Some("4")),
                ("web.shop.example.com", Some("3")),
                ("x.example.com", Some("2")),
                ("cart.example.com", Some("2")),
                (".example.com", Some("0")),
                ("cart.shop.test", Some("5")),
                ("cart.test", Some("1")),
                ("cart.", Some("0")),
                ("cart.shop.example.com:80", Some("5")),
                ("", Some("0")),
            ],
        );
    }

    #[test]
    fn ht_22_a_port_counts_unless_told_otherwise() {
        let domains = [
            Domain::Exact("a".into()),
            Domain::Exact("a:8080".into()),
            Domain::Exact("[::1]".into()),
        ];
        check(
            &hosts(&domains, false),
            &[
                ("a", Some("0")),
                ("a:8080", Some("1")),
                ("a:80", None),
                ("[::1]:80", None),
            ],
        );
        check(
            &hosts(&domains, true),
            &[
                ("a:8080", Some("0")),
                ("a:80", Some("0")),
                ("A:", Some("0")),
                ("[::1]:80", Some("2")),
                ("[::1]", Some("2")),
                ("a:x", None),
                ("::1:80", None),
            ],
        );
    }

    #[test]
    fn without_domains_nothing_is_found() {
        check(&hosts(&[], false), &[("a", None), ("", None)]);
    }
}
