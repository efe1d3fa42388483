//! Load balancing: the policy list of gRFC A52, or the older enum with its settings.

use std::time::Duration;

use outrigger_proto::{
    any::Any,
    envoy::{
        config::{
            cluster::v3::{
                Cluster, LoadBalancingPolicy,
                cluster::{
                    CommonLbConfig, LbConfig, LbPolicy, SlowStartConfig,
                    common_lb_config::LocalityConfigSpecifier, ring_hash_lb_config,
                },
            },
            core::v3::RuntimeDouble,
        },
        extensions::load_balancing_policies::{
            common::v3::{
                ConsistentHashingLbConfig, LocalityLbConfig, SlowStartConfig as CommonSlowStart,
                locality_lb_config::LocalityConfigSpecifier as CommonLocality,
            },
            least_request::v3::LeastRequest,
            maglev::v3::Maglev,
            pick_first::v3::PickFirst,
            random::v3::Random,
            ring_hash::v3::{RingHash, ring_hash},
            round_robin::v3::RoundRobin,
            wrr_locality::v3::WrrLocality,
        },
    },
    outrigger::extensions::v1::PeakEwma,
    type_url,
};

use super::{
    at::At,
    value::{Decoded, enumerated, number, percent, positive, unpack},
};
use crate::config::cluster::{Balancing, LocalityMode, SlowStart};

/// Envoy's maximum; it bounds the memory of a ring.
const MAX_RING: u64 = 8 << 20;
const MIN_RING: u64 = 1024;
/// Envoy's maximum of a Maglev table.
const MAX_TABLE: u64 = 5_000_011;
const TABLE: u64 = 65_537;
/// gRFC A52: policies may hold policies, but not without end.
const MAX_DEPTH: u32 = 16;
/// Envoy: zone-aware routing needs at least so many endpoints.
const ZONE_AWARE_LEAST: u64 = 6;

/// What was chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) balancing: Balancing,
    pub(super) locality: LocalityMode,
    pub(super) slow_start: Option<SlowStart>,
}

impl Policy {
    const fn plain(balancing: Balancing) -> Self {
        Self {
            balancing,
            locality: LocalityMode::Ignore,
            slow_start: None,
        }
    }
}

pub(super) fn policy(at: At<'_>, cluster: &Cluster) -> Decoded<Policy> {
    let common = cluster.common_lb_config.clone().unwrap_or_default();
    if let Some(list) = &cluster.load_balancing_policy {
        // In Envoy, too, the list stands in place of everything else.
        return first_known(at.field("load_balancing_policy"), list, 0);
    }
    let mut policy = by_enum(at, cluster)?;
    policy.locality = locality(at.field("common_lb_config"), &common)?;
    Ok(policy)
}

fn by_enum(at: At<'_>, cluster: &Cluster) -> Decoded<Policy> {
    let at_policy = at.field("lb_policy");
    let settings = cluster.lb_config.as_ref();
    Ok(match enumerated(at_policy, cluster.lb_policy)? {
        LbPolicy::RoundRobin | LbPolicy::ClusterProvided => {
            let mut policy = Policy::plain(Balancing::RoundRobin);
            if let Some(LbConfig::RoundRobinLbConfig(inner)) = settings {
                let at = at.field("round_robin_lb_config");
                policy.slow_start = slow_start(at, inner.slow_start_config.as_ref())?;
            }
            policy
        }
        LbPolicy::LeastRequest => {
            let at = at.field("least_request_lb_config");
            let (mut choices, mut bias, mut slow) = (None, None, None);
            if let Some(LbConfig::LeastRequestLbConfig(inner)) = settings {
                choices = inner.choice_count;
                bias = inner.active_request_bias.as_ref();
                slow = slow_start(at, inner.slow_start_config.as_ref())?;
            }
            Policy {
                slow_start: slow,
                ..Policy::plain(least_request(at, choices, bias)?)
            }
        }
        LbPolicy::Random => Policy::plain(Balancing::Random),
        LbPolicy::RingHash => Policy::plain(match settings {
            Some(LbConfig::RingHashLbConfig(inner)) => {
                let at = at.field("ring_hash_lb_config");
                let function = at.field("hash_function");
                match enumerated(function, inner.hash_function)? {
                    ring_hash_lb_config::HashFunction::XxHash => {}
                    ring_hash_lb_config::HashFunction::MurmurHash2 => {
                        return Err(function.bad("only XX_HASH is computed"));
                    }
                }
                ring(at, inner.minimum_ring_size, inner.maximum_ring_size)?
            }
            _ => ring(at, None, None)?,
        }),
        LbPolicy::Maglev => Policy::plain(match settings {
            Some(LbConfig::MaglevLbConfig(inner)) => {
                maglev(at.field("maglev_lb_config"), inner.table_size)?
            }
            _ => maglev(at, None)?,
        }),
        LbPolicy::LoadBalancingPolicyConfig => {
            return Err(at.field("load_balancing_policy").bad("is required"));
        }
    })
}

/// gRFC A52: the first policy of the list that is known is the one.
fn first_known(at: At<'_>, list: &LoadBalancingPolicy, depth: u32) -> Decoded<Policy> {
    at.refuse_if(
        depth > MAX_DEPTH,
        "holds policies within policies, too deep",
    )?;
    for (i, entry) in list.policies.iter().enumerate() {
        let at = at.item("policies", i);
        let at = at.field("typed_extension_config");
        let config = entry.typed_extension_config.as_ref();
        let Some(any) = config.and_then(|config| config.typed_config.as_ref()) else {
            return Err(at.bad("needs a typed_config"));
        };
        if let Some(policy) = known(at.field("typed_config"), any, depth)? {
            return Ok(policy);
        }
    }
    Err(at.bad("none of the policies is known"))
}

fn known(at: At<'_>, any: &Any, depth: u32) -> Decoded<Option<Policy>> {
    let policy = match any.type_url.as_str() {
        type_url::PEAK_EWMA => {
            let inner: PeakEwma = unpack(at, any)?;
            Policy {
                balancing: peak_ewma(at, &inner)?,
                locality: common_locality(at, inner.locality_lb_config.as_ref())?,
                slow_start: common_slow_start(at, inner.slow_start_config.as_ref())?,
            }
        }
        type_url::ROUND_ROBIN => {
            let inner: RoundRobin = unpack(at, any)?;
            Policy {
                balancing: Balancing::RoundRobin,
                locality: common_locality(at, inner.locality_lb_config.as_ref())?,
                slow_start: common_slow_start(at, inner.slow_start_config.as_ref())?,
            }
        }
        type_url::LEAST_REQUEST => {
            let inner: LeastRequest = unpack(at, any)?;
            let bias = inner.active_request_bias.as_ref();
            Policy {
                balancing: least_request(at, inner.choice_count, bias)?,
                locality: common_locality(at, inner.locality_lb_config.as_ref())?,
                slow_start: common_slow_start(at, inner.slow_start_config.as_ref())?,
            }
        }
        type_url::RANDOM => {
            let inner: Random = unpack(at, any)?;
            Policy {
                locality: common_locality(at, inner.locality_lb_config.as_ref())?,
                ..Policy::plain(Balancing::Random)
            }
        }
        type_url::RING_HASH => Policy::plain(ring_hash(at, &unpack(at, any)?)?),
        type_url::MAGLEV => {
            let inner: Maglev = unpack(at, any)?;
            note_hashing(at, inner.consistent_hashing_lb_config.as_ref());
            Policy::plain(maglev(at, inner.table_size)?)
        }
        type_url::PICK_FIRST => {
            let PickFirst {
                shuffle_address_list: shuffle,
            } = unpack(at, any)?;
            Policy::plain(Balancing::PickFirst { shuffle })
        }
        type_url::WRR_LOCALITY => {
            let inner: WrrLocality = unpack(at, any)?;
            let at = at.field("endpoint_picking_policy");
            let list = inner.endpoint_picking_policy.as_ref();
            let list = list.ok_or_else(|| at.bad("is required"))?;
            Policy {
                locality: LocalityMode::Weighted,
                ..first_known(at, list, depth + 1)?
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(policy))
}

fn peak_ewma(at: At<'_>, value: &PeakEwma) -> Decoded<Balancing> {
    // What Finagle and linkerd start from.
    const DECAY: Duration = Duration::from_secs(10);
    const DEFAULT_RTT: Duration = Duration::from_millis(30);
    let rtt = value.default_rtt.as_ref();
    Ok(Balancing::PeakEwma {
        decay: positive(at.field("decay"), value.decay.as_ref(), DECAY)?,
        default_rtt: positive(at.field("default_rtt"), rtt, DEFAULT_RTT)?,
    })
}

fn ring_hash(at: At<'_>, value: &RingHash) -> Decoded<Balancing> {
    let function = at.field("hash_function");
    match enumerated(function, value.hash_function)? {
        ring_hash::HashFunction::DefaultHash | ring_hash::HashFunction::XxHash => {}
        ring_hash::HashFunction::MurmurHash2 => {
            return Err(function.bad("only XX_HASH is computed"));
        }
    }
    note_hashing(at, value.consistent_hashing_lb_config.as_ref());
    ring(at, value.minimum_ring_size, value.maximum_ring_size)
}

fn note_hashing(at: At<'_>, value: Option<&ConsistentHashingLbConfig>) {
    let at = at.field("consistent_hashing_lb_config");
    if let Some(value) = value {
        at.ignores("use_hostname_for_hashing", value.use_hostname_for_hashing);
        at.ignores("hash_balance_factor", value.hash_balance_factor.is_some());
    }
}

fn least_request(
    at: At<'_>,
    choices: Option<u32>,
    bias: Option<&RuntimeDouble>,
) -> Decoded<Balancing> {
    // gRFC A48: larger values are taken as 10.
    const MAX_CHOICES: u32 = 10;
    let choices = choices.unwrap_or(2);
    at.field("choice_count")
        .refuse_if(choices < 2, "must be 2 or more")?;
    let bias = bias.map_or(1.0, |bias| bias.default_value);
    Ok(Balancing::LeastRequest {
        choices: choices.min(MAX_CHOICES),
        bias: number(at.field("active_request_bias"), bias, 0.0)?,
    })
}

fn ring(at: At<'_>, min: Option<u64>, max: Option<u64>) -> Decoded<Balancing> {
    let max = max.unwrap_or(MAX_RING);
    let min = min.unwrap_or_else(|| MIN_RING.min(max));
    let at_max = at.field("maximum_ring_size");
    at_max.refuse_if(max == 0 || max > MAX_RING, "must be 1 to 8388608")?;
    at.field("minimum_ring_size")
        .refuse_if(min > max, "is above maximum_ring_size")?;
    let size = |n: u64| u32::try_from(n).map_err(|_| at_max.bad("is too large"));
    Ok(Balancing::RingHash {
        min_size: size(min.max(1))?,
        max_size: size(max)?,
    })
}

fn maglev(at: At<'_>, size: Option<u64>) -> Decoded<Balancing> {
    let size = size.unwrap_or(TABLE);
    let at = at.field("table_size");
    let prime = size >= 2
        && (2..)
            .take_while(|d| d * d <= size)
            .all(|d| !size.is_multiple_of(d));
    at.refuse_if(size > MAX_TABLE, "is above 5000011")?;
    at.refuse_if(!prime, "must be a prime number")?;
    let table_size = u32::try_from(size).map_err(|_| at.bad("is too large"))?;
    Ok(Balancing::Maglev { table_size })
}

fn locality(at: At<'_>, value: &CommonLbConfig) -> Decoded<LocalityMode> {
    if let Some(hashing) = &value.consistent_hashing_lb_config {
        let at = at.field("consistent_hashing_lb_config");
        at.ignores("use_hostname_for_hashing", hashing.use_hostname_for_hashing);
        at.ignores("hash_balance_factor", hashing.hash_balance_factor.is_some());
    }
    at.ignores(
        "ignore_new_hosts_until_first_hc",
        value.ignore_new_hosts_until_first_hc,
    );
    at.ignores(
        "close_connections_on_host_set_change",
        value.close_connections_on_host_set_change,
    );
    match &value.locality_config_specifier {
        None => Ok(LocalityMode::Ignore),
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => Ok(LocalityMode::Weighted),
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) => {
            let at = at.field("zone_aware_lb_config");
            at.ignores("fail_traffic_on_panic", zone.fail_traffic_on_panic);
            zone_aware(at, zone.routing_enabled.as_ref(), zone.min_cluster_size)
        }
    }
}

fn common_locality(at: At<'_>, value: Option<&LocalityLbConfig>) -> Decoded<LocalityMode> {
    let at = at.field("locality_lb_config");
    match value.and_then(|value| value.locality_config_specifier.as_ref()) {
        None => Ok(LocalityMode::Ignore),
        Some(CommonLocality::LocalityWeightedLbConfig(_)) => Ok(LocalityMode::Weighted),
        Some(CommonLocality::ZoneAwareLbConfig(zone)) => {
            let at = at.field("zone_aware_lb_config");
            at.ignores("fail_traffic_on_panic", zone.fail_traffic_on_panic);
            zone_aware(at, zone.routing_enabled.as_ref(), zone.min_cluster_size)
        }
    }
}

fn zone_aware(
    at: At<'_>,
    enabled: Option<&outrigger_proto::envoy::r#type::v3::Percent>,
    least: Option<u64>,
) -> Decoded<LocalityMode> {
    let at_enabled = at.field("routing_enabled");
    let enabled = percent(at_enabled, enabled)?.unwrap_or(100.0);
    if enabled <= 0.0 {
        return Ok(LocalityMode::Ignore);
    }
    at.ignores("routing_enabled", enabled < 100.0);
    let least = least.unwrap_or(ZONE_AWARE_LEAST);
    Ok(LocalityMode::ZoneAware {
        min_cluster_size: u32::try_from(least).unwrap_or(u32::MAX),
    })
}

fn slow_start(at: At<'_>, value: Option<&SlowStartConfig>) -> Decoded<Option<SlowStart>> {
    let Some(value) = value else { return Ok(None) };
    let window = value.slow_start_window.as_ref();
    let share = value.min_weight_percent.as_ref();
    ramp(at, window, value.aggression.as_ref(), share).map(Some)
}

fn common_slow_start(at: At<'_>, value: Option<&CommonSlowStart>) -> Decoded<Option<SlowStart>> {
    let Some(value) = value else { return Ok(None) };
    let window = value.slow_start_window.as_ref();
    let share = value.min_weight_percent.as_ref();
    ramp(at, window, value.aggression.as_ref(), share).map(Some)
}

fn ramp(
    at: At<'_>,
    window: Option<&prost_types::Duration>,
    aggression: Option<&RuntimeDouble>,
    share: Option<&outrigger_proto::envoy::r#type::v3::Percent>,
) -> Decoded<SlowStart> {
    let at = at.field("slow_start_config");
    at.field("slow_start_window")
        .refuse_if(window.is_none(), "is required")?;
    let aggression = aggression.map_or(1.0, |value| value.default_value);
    let at_aggression = at.field("aggression");
    at_aggression.refuse_if(aggression <= 0.0, "must be over 0")?;
    Ok(SlowStart {
        window: positive(
            at.field("slow_start_window"),
            window,
            Duration::from_secs(1),
        )?,
        aggression: number(at_aggression, aggression, 0.0)?,
        min_weight_percent: percent(at.field("min_weight_percent"), share)?.unwrap_or(10.0),
    })
}
