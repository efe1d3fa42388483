//! What the proxy lets others see of it: builds the telemetry and gives it the numbers that the
//! other parts own.

use std::{
    io,
    sync::{Arc, Weak},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use tokio::time::Instant;

use crate::{
    balance::{BreakerState, ClusterHandle},
    bootstrap::RunArgs,
    policy::worker::Shared,
    telemetry::{
        AccessLog, Lines, Names, Setup, Spans, Telemetry, WallClock,
        metrics::{self, Sheet, Text, Value},
    },
    xds::{Kind, Stats, UpdateResult},
};

/// The time of day, to the nanosecond.
#[expect(
    clippy::disallowed_methods,
    reason = "here wall time enters the telemetry"
)]
pub(super) fn clock() -> WallClock {
    Arc::new(SystemTime::now)
}

/// The telemetry that the settings ask for.
pub(super) fn telemetry(args: &RunArgs, spans: Spans) -> anyhow::Result<Arc<Telemetry>> {
    let access_log = match args.access_log.format() {
        None => None,
        Some(format) => Some(AccessLog {
            format,
            scope: args.scope(),
            lines: Lines::start("access-log", io::stdout()).context("access log")?,
        }),
    };
    let telemetry = Telemetry::new(Setup {
        clock: clock(),
        access_log,
        spans: Some(spans),
    });
    let labels = [
        &args.workload,
        &args.namespace,
        &args.service_account,
        &args.trust_domain,
        &args.zone,
    ]
    .map(|text| Text::from(text.clone()));
    telemetry.collect_with(Box::new(move |sheet| {
        sheet.add(&metrics::WORKLOAD, labels.clone(), Value::Count(1));
    }));
    Ok(Arc::new(telemetry))
}

/// Adds the numbers of clusters, configuration and identity to each scrape.
pub(super) fn watch(shared: &Arc<Shared>) {
    let telemetry = &shared.telemetry;
    // The telemetry is a part of what is shared, so it must not own it.
    let weak = Arc::downgrade(shared);
    telemetry.keep_series_with(Box::new(move || names(&weak)));
    let weak = Arc::downgrade(shared);
    let clock = clock();
    telemetry.collect_with(Box::new(move |sheet| {
        let Some(shared) = weak.upgrade() else { return };
        let world = shared.world.load_full();
        let generation = world.live.snapshot.generation;
        let generation = u32::try_from(generation).unwrap_or(u32::MAX);
        sheet.gauge(&metrics::CONFIG_GENERATION, [], generation);
        let now = Instant::now();
        for cluster in world.live.clusters.values() {
            collect_cluster(sheet, cluster, now);
        }
        if let Some(identity) = shared.identity.get() {
            let left = seconds(identity.not_after) - unix(clock());
            sheet.gauge(&metrics::IDENTITY_EXPIRY, [], left);
        }
    }));
}

fn names(shared: &Weak<Shared>) -> Names {
    let Some(shared) = shared.upgrade() else {
        return Names::default();
    };
    let world = shared.world.load_full();
    let hosts = world
        .route_configs()
        .flat_map(|config| &config.virtual_hosts);
    let routes = hosts.flat_map(|host| &host.routes);
    Names {
        clusters: world.live.clusters.keys().cloned().collect(),
        routes: routes.map(|route| Arc::clone(&route.name)).collect(),
    }
}

fn unix(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "times of this age of the world fit"
)]
const fn seconds(unix: u64) -> f64 {
    unix as f64
}

fn collect_cluster(sheet: &mut Sheet, cluster: &ClusterHandle, now: Instant) {
    let stats = cluster.stats(now);
    let name = || Text::from(cluster.config.name.as_str().to_owned());
    sheet.gauge(
        &metrics::CLUSTER_REQUESTS_ACTIVE,
        [name()],
        stats.active_requests,
    );
    sheet.gauge(
        &metrics::CLUSTER_CONNECTIONS_ACTIVE,
        [name()],
        stats.active_connections,
    );
    sheet.gauge(&metrics::CLUSTER_PENDING, [name()], stats.pending);
    sheet.count(&metrics::CLUSTER_RETRIES, [name()], stats.retries);
    for (limit, times) in [
        ("requests", stats.over_requests),
        ("connections", stats.over_connections),
        ("pending", stats.over_pending),
        ("retries", stats.over_retries),
    ] {
        sheet.count(&metrics::CLUSTER_OVERFLOW, [name(), limit.into()], times);
    }
    if let Some((state, transitions)) = stats.breaker {
        for one in BreakerState::ALL {
            let labels = [name(), one.as_str().into()];
            sheet.gauge(
                &metrics::CLUSTER_BREAKER_STATE,
                labels,
                u8::from(one == state),
            );
        }
        sheet.count(&metrics::CLUSTER_BREAKER_TRANSITIONS, [name()], transitions);
        let rejected = stats.breaker_rejected;
        sheet.count(&metrics::CLUSTER_BREAKER_REJECTIONS, [name()], rejected);
    }
    sheet.count(&metrics::CLUSTER_EJECTIONS, [name()], stats.ejections);
    for (state, number) in [
        ("available", stats.healthy),
        ("unavailable", stats.endpoints.saturating_sub(stats.healthy)),
    ] {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        sheet.gauge(&metrics::CLUSTER_ENDPOINTS, [name(), state.into()], number);
    }
}

/// Adds the numbers of the configuration stream to each scrape.
pub(super) fn watch_xds(telemetry: &Telemetry, stats: Arc<Stats>) {
    use std::sync::atomic::Ordering::Relaxed;
    let clock = clock();
    telemetry.collect_with(Box::new(move |sheet| {
        let connected = u8::from(stats.connected.load(Relaxed));
        sheet.gauge(&metrics::XDS_CONNECTED, [], connected);
        sheet.count(&metrics::XDS_STREAMS, [], stats.streams.load(Relaxed));
        sheet.count(&metrics::XDS_FAILURES, [], stats.failures.load(Relaxed));
        let destinations = stats.destinations.load(Relaxed);
        let destinations = u32::try_from(destinations).unwrap_or(u32::MAX);
        sheet.gauge(&metrics::XDS_DESTINATIONS, [], destinations);
        for kind in Kind::ALL {
            for result in UpdateResult::ALL {
                let labels = [kind.as_str().into(), result.as_str().into()];
                let count = stats.updates(kind, result);
                sheet.count(&metrics::XDS_UPDATES, labels, count);
            }
        }
        for (kind, field, count) in stats.ignored() {
            let labels = [kind.as_str().into(), field.into()];
            sheet.count(&metrics::XDS_IGNORED, labels, count);
        }
        if let Some(last) = stats.last_update() {
            let age = unix(clock()) - unix(last);
            sheet.gauge(&metrics::CONFIG_AGE, [], age.max(0.0));
        }
    }));
}
