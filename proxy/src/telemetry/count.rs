//! Finished requests and connections become numbers here.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use super::{
    ConnectionRecord, Record,
    metrics::{self, Sheet, Text, Value},
    series::{Histogram, OTHER, Outcomes, RouteSeries, Store, Subject},
};
use crate::{
    config::{SpiffeId, listener::Direction},
    fault::Fault,
};

/// Key of "no fault", "no gRPC status".
const NONE: u64 = 0xff;
/// gRPC statuses are 0 to 16; a server's invention counts as this.
const GRPC_OTHER: u64 = 0xfe;

/// Why a TLS handshake failed, as far as an operator treats it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsFailure {
    /// This proxy has no certificate, or one that is over.
    NoIdentity,
    /// The peer's certificate was not accepted, or names the wrong workload.
    PeerRefused,
    /// The peer presented no certificate and had to.
    NoPeerCertificate,
    Timeout,
    /// Anything else: versions, ciphers, garbage, a broken connection.
    Protocol,
}

impl TlsFailure {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::NoIdentity,
        Self::PeerRefused,
        Self::NoPeerCertificate,
        Self::Timeout,
        Self::Protocol,
    ];

    /// The label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoIdentity => "no_identity",
            Self::PeerRefused => "peer_refused",
            Self::NoPeerCertificate => "no_peer_certificate",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
        }
    }

    const fn of(fault: Fault) -> Option<Self> {
        match fault {
            Fault::IdentityMissing => Some(Self::NoIdentity),
            Fault::PeerIdentityMismatch => Some(Self::PeerRefused),
            Fault::TlsFailed => Some(Self::Protocol),
            _ => None,
        }
    }
}

/// By direction.
#[derive(Debug, Default)]
struct Sided<T> {
    inbound: T,
    outbound: T,
}

impl<T> Sided<T> {
    const fn of(&self, direction: Direction) -> &T {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }
}

/// All counters that telemetry owns.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) store: Store,
    accepted: Sided<AtomicU64>,
    open: Sided<AtomicI64>,
    tls: Sided<[AtomicU64; TlsFailure::ALL.len()]>,
}

impl Counters {
    pub(super) fn accepted(&self, direction: Direction) {
        self.accepted.of(direction).fetch_add(1, Relaxed);
        self.open.of(direction).fetch_add(1, Relaxed);
    }

    pub(super) fn closed(&self, direction: Direction) {
        self.open.of(direction).fetch_sub(1, Relaxed);
    }

    pub(super) fn tls_failure(&self, direction: Direction, why: TlsFailure) {
        if let Some(count) = self.tls.of(direction).get(why as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn request(&self, record: &Record) {
        let (series, cluster) = self.store.get(&Subject {
            direction: record.direction,
            cluster: record.cluster.as_ref().map_or("", |name| name.as_str()),
            route: record.route.as_deref().unwrap_or_default(),
            peer: peer(record.remote()),
        });
        series
            .outcomes
            .count(outcome_key(record.code(), record.grpc_status, record.fault));
        series.duration.observe(record.ended - record.started);
        series.request_bytes.fetch_add(record.bytes_in, Relaxed);
        series.response_bytes.fetch_add(record.bytes_out, Relaxed);
        for attempt in &record.attempts {
            let server_error = attempt.status.is_some_and(|status| status.as_u16() >= 500);
            cluster
                .attempts
                .count(attempt_key(attempt.fault, server_error));
            if !attempt.reused && !attempt.connect.is_zero() {
                cluster.connect.observe(attempt.connect);
            }
            if !attempt.reused && !attempt.tls.is_zero() {
                cluster.tls.observe(attempt.tls);
            }
            if let Some(why) = attempt.fault.and_then(TlsFailure::of) {
                self.tls_failure(Direction::Outbound, why);
            }
        }
    }

    pub(super) fn connection(&self, record: &ConnectionRecord) {
        let (series, _) = self.store.get(&Subject {
            direction: record.direction,
            cluster: record.cluster.as_ref().map_or("", |name| name.as_str()),
            route: "",
            peer: peer(record.remote()),
        });
        series.connections.count(fault_key(record.fault));
        series.sent.fetch_add(record.bytes_in, Relaxed);
        series.received.fetch_add(record.bytes_out, Relaxed);
        if let Some(why) = record.fault.and_then(TlsFailure::of) {
            self.tls_failure(Direction::Outbound, why);
        }
    }
}

fn peer(id: Option<&SpiffeId>) -> &str {
    id.map_or("", SpiffeId::as_str)
}

const fn fault_key(fault: Option<Fault>) -> u64 {
    match fault {
        Some(fault) => fault as u64,
        None => NONE,
    }
}

fn fault_of(key: u64) -> Option<Fault> {
    Fault::ALL.get(usize::try_from(key).ok()?).copied()
}

fn outcome_key(code: u16, grpc: Option<u32>, fault: Option<Fault>) -> u64 {
    let grpc = match grpc {
        None => NONE,
        Some(status @ 0..=16) => u64::from(status),
        Some(_) => GRPC_OTHER,
    };
    u64::from(code) << 16 | grpc << 8 | fault_key(fault)
}

const OK: u64 = 0x100;
const SERVER_ERROR: u64 = 0x101;

const fn attempt_key(fault: Option<Fault>, server_error: bool) -> u64 {
    match (fault, server_error) {
        (Some(fault), _) => fault as u64,
        (None, true) => SERVER_ERROR,
        (None, false) => OK,
    }
}

// How the keys read as labels.

fn outcome_labels(key: u64) -> [Text; 3] {
    if key == Outcomes::OVERFLOW {
        return [OTHER.into(), OTHER.into(), OTHER.into()];
    }
    let code = (key >> 16).to_string();
    let grpc = match key >> 8 & 0xff {
        NONE => "".into(),
        GRPC_OTHER => OTHER.into(),
        status => status.to_string().into(),
    };
    [code.into(), grpc, flag(key & 0xff)]
}

fn flag(key: u64) -> Text {
    match key {
        NONE => "".into(),
        Outcomes::OVERFLOW => OTHER.into(),
        key => fault_of(key).map_or(OTHER, |fault| fault.row().flag).into(),
    }
}

fn attempt_label(key: u64) -> Text {
    match key {
        OK => "ok".into(),
        SERVER_ERROR => "server_error".into(),
        key => fault_of(key).map_or(OTHER, Fault::name).into(),
    }
}

impl Counters {
    pub(super) fn collect(&self, sheet: &mut Sheet) {
        for direction in [Direction::Inbound, Direction::Outbound] {
            let side = || Text::from(direction.as_str());
            let total = self.accepted.of(direction).load(Relaxed);
            sheet.count(&metrics::CONNECTIONS, [side()], total);
            let open = self.open.of(direction).load(Relaxed);
            let open = i32::try_from(open).unwrap_or(i32::MAX);
            sheet.gauge(&metrics::CONNECTIONS_ACTIVE, [side()], open);
            for (why, count) in TlsFailure::ALL.iter().zip(self.tls.of(direction)) {
                let labels = [side(), why.as_str().into()];
                sheet.count(&metrics::TLS_FAILURES, labels, count.load(Relaxed));
            }
        }
        self.store
            .each_route(|of, series| collect_route(sheet, of, series));
        self.store.each_cluster(|direction, cluster, series| {
            let name = Text::from(cluster.to_owned());
            let side = Text::from(direction.as_str());
            for (key, count) in series.attempts.iter() {
                let labels = [side.clone(), name.clone(), attempt_label(key)];
                sheet.count(&metrics::ATTEMPTS, labels, count);
            }
            let mut times = |metric, histogram: &Histogram| {
                if let Some(value) = histogram.value() {
                    sheet.add(metric, [side.clone(), name.clone()], value);
                }
            };
            times(&metrics::CONNECT_DURATION, &series.connect);
            times(&metrics::TLS_DURATION, &series.tls);
        });
        sheet.count(&metrics::SERIES_OVERFLOW, [], self.store.overflowed());
    }
}

fn collect_route(sheet: &mut Sheet, of: Subject<'_>, series: &RouteSeries) {
    let side = Text::from(of.direction.as_str());
    let owned = |text: &str| Text::from(text.to_owned());
    let (cluster, route, peer) = (owned(of.cluster), owned(of.route), owned(of.peer));
    let names = || [side.clone(), cluster.clone(), route.clone(), peer.clone()];
    for (key, count) in series.outcomes.iter() {
        let ([a, b, c, d], [code, grpc, flag]) = (names(), outcome_labels(key));
        sheet.count(&metrics::REQUESTS, [a, b, c, d, code, grpc, flag], count);
    }
    if let Some(value @ Value::Histogram { .. }) = series.duration.value() {
        sheet.add(&metrics::REQUEST_DURATION, names(), value);
        let bytes = series.request_bytes.load(Relaxed);
        sheet.count(&metrics::REQUEST_BYTES, names(), bytes);
        let bytes = series.response_bytes.load(Relaxed);
        sheet.count(&metrics::RESPONSE_BYTES, names(), bytes);
    }
    let mut opaque = false;
    for (key, count) in series.connections.iter() {
        opaque = true;
        let labels = [side.clone(), cluster.clone(), peer.clone(), flag(key)];
        sheet.count(&metrics::TCP_CONNECTIONS, labels, count);
    }
    if opaque {
        for (way, bytes) in [("sent", &series.sent), ("received", &series.received)] {
            let labels = [side.clone(), cluster.clone(), peer.clone(), way.into()];
            sheet.count(&metrics::TCP_BYTES, labels, bytes.load(Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_its_own_key_and_reads_back() {
        for fault in Fault::ALL {
            assert_eq!(fault_of(fault_key(Some(*fault))), Some(*fault));
            let [code, grpc, flag] = outcome_labels(outcome_key(503, Some(14), Some(*fault)));
            assert_eq!((&*code, &*grpc, &*flag), ("503", "14", fault.row().flag));
        }
        assert!(Fault::ALL.len() < 0xfe, "the keys of faults have one byte");
    }

    #[test]
    fn what_a_server_invents_is_other() {
        assert_eq!(outcome_labels(outcome_key(200, Some(99), None))[1], OTHER);
        assert_eq!(outcome_labels(Outcomes::OVERFLOW)[0], OTHER);
        assert_eq!(
            outcome_labels(outcome_key(200, None, None)),
            ["200", "", ""]
        );
        assert_eq!(attempt_label(attempt_key(None, true)), "server_error");
    }
}
