//! What is not said, and what is switched off.

use super::*;
use crate::config::{
    cluster::{Balancing, Discovery, Limits, LocalityMode, UpstreamProtocol},
    listener::{Codec, Routes},
};

#[test]
fn defaults_are_envoys() {
    let (manager, _) = manager(&with_manager(""));
    assert_eq!(manager.codec, Codec::Auto);
    assert_eq!(manager.stream_idle_timeout, Some(seconds(300)));
    assert_eq!(manager.idle_timeout, Some(seconds(3600)));
    assert_eq!(manager.max_request_headers_kb, 60);
    assert!(manager.upgrades.is_empty() && manager.tracing.is_none() && !manager.access_log);
    assert!(matches!(&manager.routes, Routes::Rds(name) if name.as_str() == "r"));

    let forward = forward(&with_forward(""));
    assert_eq!(forward.timeout, Some(seconds(15)));
    assert_eq!(forward.cluster_not_found, 503);
    assert!(forward.retry.is_none() && forward.idle_timeout.is_none());
    assert!(!forward.high_priority);

    let (cluster, ignored) = cluster(&with_cluster(""));
    assert_eq!(cluster.discovery, Discovery::Eds("c".into()));
    assert_eq!(cluster.connect_timeout, seconds(5));
    assert_eq!(cluster.balancing, Balancing::RoundRobin);
    assert_eq!(cluster.locality, LocalityMode::Ignore);
    assert_eq!(cluster.panic_threshold, 50);
    assert_eq!(cluster.protocol, UpstreamProtocol::Http1);
    assert_eq!(cluster.idle_timeout, Some(seconds(3600)));
    assert_eq!(cluster.limits, Limits::DEFAULT);
    assert!(cluster.outlier.is_none() && cluster.breaker.is_none());
    assert!(cluster.tls.default.is_none() && ignored.is_empty());
}

#[test]
fn a_zero_time_out_is_none() {
    let forward = forward(&with_forward(
        "timeout: 0s, max_stream_duration: {grpc_timeout_header_max: 0s}",
    ));
    assert_eq!(forward.timeout, None);
    assert_eq!(forward.grpc_timeout_max, Some(Duration::ZERO), "as asked");
    let (manager, _) = manager(&with_manager(
        "stream_idle_timeout: 0s, common_http_protocol_options: {idle_timeout: 0s}",
    ));
    assert_eq!(
        (manager.stream_idle_timeout, manager.idle_timeout),
        (None, None)
    );
    let forward = self::forward(&with_forward("timeout: 315576000000s, idle_timeout: 0s"));
    let now = std::time::UNIX_EPOCH;
    assert!(
        forward
            .timeout
            .and_then(|time| now.checked_add(time))
            .is_some()
    );
    assert!(
        forward
            .idle_timeout
            .is_some_and(|time| time > seconds(1 << 27)),
        "switched off"
    );
}
