//! How the localities of one priority share its load (Envoy locality weights and zone-aware
//! routing).

use super::endpoint::EndpointState;
use crate::config::{
    cluster::LocalityMode,
    endpoint::{Locality, LocalityEndpoints},
};
use std::sync::Arc;

/// Shares are out of this many.
const WHOLE: f64 = 100_000.0;

/// One locality of a priority: who may be chosen there, of how many.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) source: &'a LocalityEndpoints,
    pub(super) members: usize,
    pub(super) healthy: usize,
    /// Healthy ones, or all in panic.
    pub(super) usable: Vec<Arc<EndpointState>>,
}

/// The shares of `places`, in their order; `None` when the localities do not matter and the members
/// are best seen as one set.
pub(super) fn shares(
    places: &[Place<'_>],
    mode: LocalityMode,
    home: &Locality,
    overprovisioning: u32,
    panic: bool,
) -> Option<Vec<u32>> {
    let shares = match mode {
        LocalityMode::Ignore => return None,
        LocalityMode::Weighted => weighted(places, overprovisioning, panic),
        LocalityMode::ZoneAware { min_cluster_size } => {
            let healthy: usize = places.iter().map(|place| place.healthy).sum();
            if panic || healthy < min_cluster_size as usize {
                return None;
            }
            zone_aware(places, home)?
        }
    };
    // Without a weight anywhere, weighting was not meant.
    shares.iter().any(|share| *share > 0).then_some(shares)
}

/// Weight times availability (Envoy): a locality keeps its whole share until so many of its members
/// are unhealthy that the overprovisioning factor does not make up for them.
fn weighted(places: &[Place<'_>], overprovisioning: u32, panic: bool) -> Vec<u32> {
    let heaviest = places.iter().filter_map(|p| p.source.weight).max();
    let heaviest = f64::from(heaviest.unwrap_or(1).max(1));
    let share = |place: &Place<'_>| {
        let weight = f64::from(place.source.weight.unwrap_or(0)) / heaviest;
        let healthy = count(place.healthy) / count(place.members).max(1.0);
        let factor = f64::from(overprovisioning.max(100)) / 100.0;
        let available = if panic {
            1.0
        } else {
            (healthy * factor).min(1.0)
        };
        if place.usable.is_empty() {
            0.0
        } else {
            weight * available
        }
    };
    places.iter().map(|place| whole(share(place))).collect()
}

/// Envoy's arithmetic, which keeps every endpoint at the same load: the own zone gets all of it
/// when its share of the capacity is at least its share of the callers, else as much as fits; the
/// rest goes to the zones that have capacity to spare, in proportion (LB-07). The callers are taken
/// to be spread evenly over the zones that have endpoints, since nobody tells a proxy how they are.
fn zone_aware(places: &[Place<'_>], home: &Locality) -> Option<Vec<u32>> {
    let capacity = |place: &Place<'_>| place.usable.iter().map(|m| weight(m)).sum::<f64>();
    let zone = |place: &Place<'_>| -> (Box<str>, Box<str>) {
        let Locality { region, zone, .. } = &place.source.locality;
        (region.clone(), zone.clone())
    };
    let is_home = |place: &Place<'_>| {
        let there = &place.source.locality;
        let region = home.region.is_empty() || home.region == there.region;
        region && !home.zone.is_empty() && home.zone == there.zone
    };
    let inhabited = || places.iter().filter(|place| !place.usable.is_empty());
    let zones: std::collections::BTreeSet<_> = inhabited().map(zone).collect();
    let total: f64 = places.iter().map(capacity).sum();
    let at_home: f64 = places.iter().filter(|p| is_home(p)).map(capacity).sum();
    if zones.len() < 2 || at_home <= 0.0 || total <= 0.0 {
        return None;
    }
    let callers = 1.0 / count(zones.len());
    let kept = (at_home / total / callers).min(1.0);
    let of_zone = |wanted: &(Box<str>, Box<str>)| -> f64 {
        places
            .iter()
            .filter(|place| zone(place) == *wanted)
            .map(capacity)
            .sum()
    };
    let spare = |place: &Place<'_>| {
        let all = of_zone(&zone(place));
        // A zone's spare capacity belongs to its sub-zones as their capacity does.
        (all / total - callers).max(0.0) * capacity(place) / all.max(f64::MIN_POSITIVE)
    };
    let spares: f64 = places.iter().filter(|p| !is_home(p)).map(spare).sum();
    let share = |place: &Place<'_>| {
        if is_home(place) {
            kept * capacity(place) / at_home
        } else if kept < 1.0 && spares > 0.0 {
            (1.0 - kept) * spare(place) / spares
        } else {
            0.0
        }
    };
    Some(places.iter().map(|place| whole(share(place))).collect())
}

fn weight(member: &EndpointState) -> f64 {
    f64::from(member.config.weight.max(1))
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and WHOLE"
)]
fn whole(share: f64) -> u32 {
    (share.clamp(0.0, 1.0) * WHOLE).round() as u32
}
