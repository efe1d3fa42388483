//! The compiled route table and what comes out of it.

use std::{collections::HashMap, fmt, sync::Arc};

use super::{
    host::{Host, Hosts},
    matcher::{Request, matches},
};
use crate::config::{
    ClusterName, RouteConfig,
    matcher::RequestView,
    route::{
        Action, Forward, HeaderMods, HostRewrite, Mirror, PathMatch, RetryPolicy, Route, Target,
        WeightedCluster,
    },
};

/// A route configuration, compiled for look-up.
#[derive(Debug)]
pub struct RouteTable {
    config: Arc<RouteConfig>,
    hosts: Hosts,
}

/// Why no route was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// No virtual host is for this host name.
    Host,
    /// None of the virtual host's routes matches.
    Route,
}

impl fmt::Display for NoRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "no virtual host for this host name",
            Self::Route => "no route of the virtual host matches",
        })
    }
}

impl RouteTable {
    /// Compiles a configuration.
    #[must_use]
    pub fn new(config: Arc<RouteConfig>) -> Self {
        let hosts = Hosts::new(
            &config.virtual_hosts,
            config.headers.clone(),
            config.ignore_port_in_host,
        );
        Self { config, hosts }
    }

    /// What the table was compiled from. Compare with [`Arc::ptr_eq`] to see whether it is current.
    #[must_use]
    pub const fn config(&self) -> &Arc<RouteConfig> {
        &self.config
    }

    /// The first route that matches, and the cluster drawn for this request. The view's path
    /// should be in normal form ([`super::path::normalize`]); `grpc` is whether the request is a
    /// gRPC call.
    ///
    /// # Errors
    /// [`NoRoute`] says what was not found.
    pub fn hit(
        &self,
        request: &RequestView<'_>,
        grpc: bool,
        rng: &mut impl rand::Rng,
    ) -> Result<RouteHit, NoRoute> {
        let host = self.hosts.find(request.authority).ok_or(NoRoute::Host)?;
        let request = Request {
            view: request,
            path: request.path(),
            grpc,
        };
        let route = host
            .index
            .candidates(request.path, &host.routes)
            .find(|route| matches(&route.matcher, &request, rng))
            .ok_or(NoRoute::Route)?;
        let (arm, cluster) = match &route.action {
            Action::Forward(forward) => draw(&forward.target, &request, rng),
            Action::Redirect(_) | Action::Respond(_) => (None, None),
        };
        Ok(RouteHit {
            host: Arc::clone(host),
            route: Arc::clone(route),
            cluster,
            arm,
        })
    }
}

/// A route found for a request.
#[derive(Clone, Debug)]
pub struct RouteHit {
    pub host: Arc<Host>,
    pub route: Arc<Route>,
    /// Where it goes. `None` when the route answers by itself, and when it forwards but names no
    /// cluster for this request (its header is missing): then it is as if the cluster were unknown.
    pub cluster: Option<ClusterName>,
    /// Which arm of a split was drawn.
    arm: Option<usize>,
}

impl RouteHit {
    /// How to forward, if the route forwards.
    #[must_use]
    pub fn forward(&self) -> Option<&Forward> {
        match &self.route.action {
            Action::Forward(forward) => Some(forward),
            Action::Redirect(_) | Action::Respond(_) => None,
        }
    }

    /// The retry policy configured for the route or its virtual host. `None` means that nobody
    /// configured one, and [`RetryPolicy::standard`] holds.
    #[must_use]
    pub fn retry(&self) -> Option<&Arc<RetryPolicy>> {
        self.forward()
            .and_then(|forward| forward.retry.as_ref())
            .or(self.host.retry.as_ref())
    }

    /// The mirrors drawn for this request.
    pub fn mirrors<'a, R: rand::Rng>(
        &'a self,
        rng: &'a mut R,
    ) -> impl Iterator<Item = &'a Mirror> + use<'a, R> {
        self.forward()
            .map_or(&[][..], |forward| &forward.mirrors)
            .iter()
            .filter(|mirror| mirror.fraction.hits(rng))
    }

    /// Header changes, from the most to the least specific, the order in which Envoy applies them:
    /// drawn cluster, route, virtual host, route configuration.
    pub(super) fn header_mods(&self) -> impl Iterator<Item = &HeaderMods> {
        self.arm_of_split()
            .map(|arm| &arm.headers)
            .into_iter()
            .chain([
                &self.route.headers,
                &self.host.headers,
                &*self.host.config_headers,
            ])
    }

    /// The host rewrite that holds: the drawn cluster's before the route's.
    pub(super) fn host_rewrite(&self) -> Option<&HostRewrite> {
        self.arm_of_split()
            .and_then(|arm| arm.host_rewrite.as_ref())
            .or_else(|| self.forward()?.host_rewrite.as_ref())
    }

    fn arm_of_split(&self) -> Option<&WeightedCluster> {
        match &self.forward()?.target {
            Target::Weighted(arms) => arms.get(self.arm?),
            Target::Cluster(_) | Target::Header(_) => None,
        }
    }
}

/// The cluster for this request, and its place in the split if there is one.
fn draw(
    target: &Target,
    request: &Request<'_>,
    rng: &mut impl rand::Rng,
) -> (Option<usize>, Option<ClusterName>) {
    match target {
        Target::Cluster(name) => (None, Some(name.clone())),
        Target::Weighted(arms) => {
            let arm = draw_arm(arms, rng);
            let name = arm.and_then(|at| arms.get(at)).map(|arm| arm.name.clone());
            (arm, name)
        }
        Target::Header(header) => {
            let value = request.view.headers.get(header);
            let name = value.and_then(|v| v.to_str().ok()).map(ClusterName::from);
            (None, name)
        }
    }
}

/// Draws in proportion to the weights; `None` when all are 0.
fn draw_arm(arms: &[WeightedCluster], rng: &mut impl rand::Rng) -> Option<usize> {
    use rand::RngExt;
    let total: u64 = arms.iter().map(|arm| u64::from(arm.weight)).sum();
    if total == 0 {
        return None;
    }
    let mut left = rng.random_range(0..total);
    arms.iter().position(|arm| {
        let weight = u64::from(arm.weight);
        let here = left < weight;
        left = left.saturating_sub(weight);
        here
    })
}

/// Up to so many routes comparing one after another is as fast as looking them up.
const INDEX_FROM: usize = 9;

/// Routes by what their path begins with, so that a host with thousands of them stays cheap. It
/// only narrows down: what it yields is compared in full, in the order of configuration.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Exact paths, case-sensitive.
    exact: HashMap<Box<str>, Vec<u32>>,
    /// Prefixes that hold a whole first element.
    element: HashMap<Box<str>, Vec<u32>>,
    /// Everything else: compared always. `None` when there is no index.
    rest: Option<Vec<u32>>,
}

impl Index {
    pub(super) fn of(routes: &[Arc<Route>]) -> Self {
        let mut index = Self::default();
        if routes.len() < INDEX_FROM {
            return index;
        }
        let mut rest = Vec::new();
        for (at, route) in (0_u32..).zip(routes) {
            let list = match &route.matcher.path {
                PathMatch::Exact {
                    text,
                    ignore_case: false,
                } => index.exact.entry(text.clone()).or_default(),
                PathMatch::ElementPrefix {
                    text,
                    ignore_case: false,
                } if text.starts_with('/') && first_element(text).len() > 1 => {
                    index.element.entry(first_element(text).into()).or_default()
                }
                PathMatch::Prefix {
                    text,
                    ignore_case: false,
                } if first_element(text).len() < text.len() => {
                    index.element.entry(first_element(text).into()).or_default()
                }
                PathMatch::Exact { .. }
                | PathMatch::ElementPrefix { .. }
                | PathMatch::Prefix { .. }
                | PathMatch::Regex(_)
                | PathMatch::Connect => &mut rest,
            };
            list.push(at);
        }
        index.rest = Some(rest);
        index
    }

    /// The routes that may match `path`, in order.
    pub(super) fn candidates<'a>(
        &'a self,
        path: &str,
        routes: &'a [Arc<Route>],
    ) -> impl Iterator<Item = &'a Arc<Route>> {
        let narrowed = self.rest.as_ref().map(|rest| {
            let lists = [
                self.exact.get(path).map_or(&[][..], Vec::as_slice),
                self.element
                    .get(first_element(path))
                    .map_or(&[][..], Vec::as_slice),
                rest.as_slice(),
            ];
            Merge { lists }.filter_map(|at| routes.get(usize::try_from(at).ok()?))
        });
        let all = if narrowed.is_some() { &[][..] } else { routes };
        narrowed.into_iter().flatten().chain(all)
    }
}

/// `/api` of `/api/v1`; the whole text when there is no second slash.
fn first_element(path: &str) -> &str {
    let second = path.match_indices('/').nth(1);
    second.map_or(path, |(at, _)| path.split_at(at).0)
}

/// Sorted lists as one.
struct Merge<'a> {
    lists: [&'a [u32]; 3],
}

impl Iterator for Merge<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let least = self.lists.iter_mut().filter(|list| !list.is_empty());
        let list = least.min_by_key(|list| list.first().copied())?;
        let (first, rest) = list.split_first()?;
        *list = rest;
        Some(*first)
    }
}
