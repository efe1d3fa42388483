//! Faults made on purpose (Envoy `HTTPFault`): a share of requests is delayed, a share is aborted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::{
    config::{
        matcher::RequestView,
        route::{Abort, FaultInjection, RouteFilters},
    },
    fault::Fault,
    http::{grpc, reply::LocalReply},
};

/// How many requests are being delayed or aborted. One for each listener that has the filter.
#[derive(Clone, Debug, Default)]
pub struct ActiveFaults(Arc<AtomicU32>);

/// Faults drawn for one request. Counts as active until it is dropped.
#[derive(Debug)]
pub struct Injected {
    /// Waited before anything else.
    pub delay: Option<Duration>,
    /// Then the answer, in place of forwarding.
    pub abort: Option<Abort>,
    _active: Held,
}

/// The filter that holds for a request: the route's own before its virtual host's before the
/// listener's.
#[must_use]
pub fn effective<'r>(
    listener: Option<&'r Arc<FaultInjection>>,
    host: &'r RouteFilters,
    route: &'r RouteFilters,
) -> Option<&'r FaultInjection> {
    let own = route.fault.as_ref().or(host.fault.as_ref()).or(listener);
    own.map(|fault| &**fault)
}

impl ActiveFaults {
    /// Draws delay and abort, each by its own share. `None` leaves the request alone: it does not
    /// match, nothing was drawn, or as many faults as allowed are active.
    #[must_use]
    pub fn draw(
        &self,
        config: &FaultInjection,
        request: &RequestView<'_>,
        rng: &mut impl rand::Rng,
    ) -> Option<Injected> {
        if !config.headers.iter().all(|header| header.matches(request)) {
            return None;
        }
        let delay = config.delay.filter(|(_, share)| share.hits(rng));
        let abort = config.abort.filter(|(_, share)| share.hits(rng));
        if delay.is_none() && abort.is_none() {
            return None;
        }
        Some(Injected {
            delay: delay.map(|(time, _)| time),
            abort: abort.map(|(abort, _)| abort),
            _active: self.hold(config.max_active.unwrap_or(u32::MAX))?,
        })
    }

    /// How many are active.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn hold(&self, max: u32) -> Option<Held> {
        let one_more = |active: u32| (active < max).then(|| active + 1);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()?;
        Some(Held(Arc::clone(&self.0)))
    }
}

/// The only place that counts down.
#[derive(Debug)]
struct Held(Arc<AtomicU32>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The answer of an injected abort.
#[must_use]
pub fn reply(abort: Abort) -> LocalReply<'static> {
    let reply = LocalReply::new(Fault::FaultInjected, "");
    match abort {
        Abort::Http(status) => LocalReply {
            status: Some(status),
            ..reply
        },
        Abort::Grpc(code) => LocalReply {
            status: Some(grpc::to_http(code)),
            grpc_status: Some(code),
            ..reply
        },
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
    use rand::SeedableRng;

    use super::*;
    use crate::config::{
        matcher::{HeaderKey, HeaderKind, HeaderMatch},
        units::Fraction,
    };

    fn config(delay: u32, abort: u32, max_active: Option<u32>) -> FaultInjection {
        FaultInjection {
            delay: Some((Duration::from_millis(5), Fraction::new(delay, 100))),
            abort: Some((
                Abort::Http(StatusCode::IM_A_TEAPOT),
                Fraction::new(abort, 100),
            )),
            headers: Vec::new(),
            max_active,
        }
    }

    fn view(headers: &HeaderMap) -> RequestView<'_> {
        RequestView {
            method: "GET",
            path_and_query: "/",
            authority: "a",
            scheme: "http",
            headers,
        }
    }

    #[test]
    fn delay_and_abort_are_drawn_each_by_its_own_share() {
        let active = ActiveFaults::default();
        let headers = HeaderMap::new();
        let mut rng = rand::rngs::StdRng::seed_from_u64(5);
        let config = config(20, 50, None);
        let (mut delays, mut aborts, mut both) = (0, 0, 0);
        for _ in 0..10_000 {
            if let Some(drawn) = active.draw(&config, &view(&headers), &mut rng) {
                delays += i32::from(drawn.delay.is_some());
                aborts += i32::from(drawn.abort.is_some());
                both += i32::from(drawn.delay.is_some() && drawn.abort.is_some());
            }
        }
        assert!((1_800..2_200).contains(&delays), "{delays}");
        assert!((4_800..5_200).contains(&aborts), "{aborts}");
        assert!((900..1_100).contains(&both), "{both}");
        assert_eq!(active.active(), 0, "dropped");
    }

    #[test]
    fn no_more_than_the_limit_are_active() {
        let active = ActiveFaults::default();
        let headers = HeaderMap::new();
        let mut rng = rand::rngs::StdRng::seed_from_u64(5);
        let config = config(100, 0, Some(2));
        let mut draw = || active.draw(&config, &view(&headers), &mut rng);
        let (first, _second) = (draw().expect("one"), draw().expect("two"));
        assert!(draw().is_none());
        assert_eq!(active.active(), 2);
        drop(first);
        assert!(draw().is_some());
    }

    #[test]
    fn only_matching_requests_are_hurt() {
        let active = ActiveFaults::default();
        let mut rng = rand::rngs::StdRng::seed_from_u64(5);
        let mut config = config(100, 100, None);
        config.headers = vec![HeaderMatch {
            key: HeaderKey::Name(HeaderName::from_static("x-hurt-me")),
            kind: HeaderKind::Present,
            invert: false,
            missing_as_empty: false,
        }];
        let mut headers = HeaderMap::new();
        assert!(active.draw(&config, &view(&headers), &mut rng).is_none());
        headers.insert("x-hurt-me", HeaderValue::from_static("1"));
        assert!(active.draw(&config, &view(&headers), &mut rng).is_some());
    }

    #[test]
    fn aborts_answer_as_configured() {
        let http = reply(Abort::Http(StatusCode::IM_A_TEAPOT));
        assert_eq!((http.http_status().as_u16(), http.grpc_code()), (418, 2));
        let grpc = reply(Abort::Grpc(8));
        assert_eq!((grpc.http_status().as_u16(), grpc.grpc_code()), (429, 8));
    }

    #[test]
    fn the_most_specific_filter_holds() {
        let [a, b, c] = [1, 2, 3].map(|share| Arc::new(config(share, 0, None)));
        let with = |fault: Option<&Arc<FaultInjection>>| RouteFilters {
            fault: fault.cloned(),
            ..RouteFilters::default()
        };
        let pick = |host, route| {
            let (host, route) = (with(host), with(route));
            let found = effective(Some(&a), &host, &route).expect("one");
            found.delay.expect("set").1
        };
        assert_eq!(pick(None, None), Fraction::new(1, 100));
        assert_eq!(pick(Some(&b), None), Fraction::new(2, 100));
        assert_eq!(pick(Some(&b), Some(&c)), Fraction::new(3, 100));
        assert!(effective(None, &with(None), &with(None)).is_none());
    }
}
