//! Scalars and small messages that every resource uses.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::{HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;
use outrigger_proto::{
    any::Any,
    envoy::{
        config::core::v3::{
            self as core, CidrRange, DataSource, RuntimeFractionalPercent, address, data_source,
            socket_address,
        },
        r#type::v3::{FractionalPercent, Percent, fractional_percent::DenominatorType},
    },
};
use prost::{Message, Name};

use super::at::At;
use crate::config::{Invalid, units::Fraction};

/// The result of decoding something.
pub(super) type Decoded<T> = Result<T, Invalid>;

/// The longest time that is told apart from "for ever". Sums with the clock stay representable.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A duration if it is set; never negative, at most [`FOR_EVER`].
pub(super) fn duration(
    at: At<'_>,
    value: Option<&prost_types::Duration>,
) -> Decoded<Option<Duration>> {
    let Some(value) = value else { return Ok(None) };
    let seconds = u64::try_from(value.seconds);
    let nanos = u32::try_from(value.nanos)
        .ok()
        .filter(|n| *n < 1_000_000_000);
    match (seconds, nanos) {
        (Ok(seconds), Some(nanos)) => Ok(Some(Duration::new(seconds, nanos).min(FOR_EVER))),
        _ => Err(at.bad("is no duration of 0s or more")),
    }
}

/// A duration with a default; zero is refused.
pub(super) fn positive(
    at: At<'_>,
    value: Option<&prost_types::Duration>,
    default: Duration,
) -> Decoded<Duration> {
    match duration(at, value)? {
        None => Ok(default),
        Some(Duration::ZERO) => Err(at.bad("must be over 0s")),
        Some(value) => Ok(value),
    }
}

/// A limit: unset is `default`, zero is no limit (Envoy's reading of most time-outs).
pub(super) fn limit(
    at: At<'_>,
    value: Option<&prost_types::Duration>,
    default: Option<Duration>,
) -> Decoded<Option<Duration>> {
    Ok(match duration(at, value)? {
        None => default,
        Some(Duration::ZERO) => None,
        some => some,
    })
}

/// A limit of which "unset" and "none" have to be told apart: zero becomes a very long time.
pub(super) fn override_limit(
    at: At<'_>,
    value: Option<&prost_types::Duration>,
) -> Decoded<Option<Duration>> {
    let long = |value: Duration| if value.is_zero() { FOR_EVER } else { value };
    Ok(duration(at, value)?.map(long))
}

/// An enum value that this version knows.
pub(super) fn enumerated<E: TryFrom<i32>>(at: At<'_>, value: i32) -> Decoded<E> {
    E::try_from(value).map_err(|_| at.bad(format!("{value} is no value of this enum")))
}

/// A percentage, 0 to 100.
pub(super) fn percent(at: At<'_>, value: Option<&Percent>) -> Decoded<Option<f64>> {
    match value {
        None => Ok(None),
        Some(Percent { value }) if (0.0..=100.0).contains(value) => Ok(Some(*value)),
        Some(Percent { value }) => Err(at.bad(format!("{value} is not between 0 and 100"))),
    }
}

/// A percentage rounded to a whole one, as Envoy rounds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "0 to 100 by `percent`"
)]
pub(super) fn whole_percent(at: At<'_>, value: Option<&Percent>, default: u32) -> Decoded<u32> {
    Ok(percent(at, value)?.map_or(default, |value| value.round() as u32))
}

/// A share of requests, from 0 to 100 by [`percent`].
pub(super) fn share(value: f64) -> Fraction {
    Fraction::of_percent(value)
}

/// A share of requests.
pub(super) fn fraction(at: At<'_>, value: &FractionalPercent) -> Decoded<Fraction> {
    let denominator = match enumerated(at.field("denominator"), value.denominator)? {
        DenominatorType::Hundred => 100,
        DenominatorType::TenThousand => 10_000,
        DenominatorType::Million => 1_000_000,
    };
    Ok(Fraction::new(value.numerator, denominator))
}

/// A share of requests that a runtime key could override; there is no runtime here.
pub(super) fn runtime_fraction(at: At<'_>, value: &RuntimeFractionalPercent) -> Decoded<Fraction> {
    let at_value = at.field("default_value");
    match &value.default_value {
        Some(value) => fraction(at_value, value),
        None => Err(at_value.bad("is required")),
    }
}

/// A TCP address with a number for a port.
pub(super) fn socket_address(at: At<'_>, value: Option<&core::Address>) -> Decoded<SocketAddr> {
    let inner = at.field("socket_address");
    match value.and_then(|address| address.address.as_ref()) {
        Some(address::Address::SocketAddress(socket)) => plain_address(inner, socket),
        Some(address::Address::Pipe(_)) => Err(at.field("pipe").bad("only TCP is served")),
        Some(address::Address::EnvoyInternalAddress(_)) => {
            let at = at.field("envoy_internal_address");
            Err(at.bad("there are no internal listeners"))
        }
        None => Err(at.bad("is required")),
    }
}

fn plain_address(at: At<'_>, socket: &core::SocketAddress) -> Decoded<SocketAddr> {
    let (host, port) = host_and_port(at, socket)?;
    let ip: IpAddr = host.parse().map_err(|_| {
        let why = format!("{host:?} is no IP address");
        at.field("address").bad(why)
    })?;
    Ok(SocketAddr::new(ip.to_canonical(), port))
}

/// A host, which may be a name, and a port.
pub(super) fn host_and_port<'s>(
    at: At<'_>,
    socket: &'s core::SocketAddress,
) -> Decoded<(&'s str, u16)> {
    let protocol = at.field("protocol");
    match enumerated(protocol, socket.protocol)? {
        socket_address::Protocol::Tcp => {}
        socket_address::Protocol::Udp => return Err(protocol.bad("only TCP is served")),
    }
    let at_port = at.field("port_value");
    let port = match &socket.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => port_number(at_port, *port)?,
        Some(socket_address::PortSpecifier::NamedPort(_)) => {
            return Err(at.field("named_port").bad("has to be a number"));
        }
        None => return Err(at_port.bad("is required")),
    };
    Ok((&socket.address, port))
}

/// A port; 0 is allowed, since a wildcard destination has it.
pub(super) fn port_number(at: At<'_>, port: u32) -> Decoded<u16> {
    u16::try_from(port).map_err(|_| at.bad(format!("{port} is above 65535")))
}

/// A network; host bits are cleared, as Envoy clears them.
pub(super) fn cidr(at: At<'_>, range: &CidrRange) -> Decoded<IpNet> {
    let prefix = &range.address_prefix;
    let ip: IpAddr = prefix.parse().map_err(|_| {
        let why = format!("{prefix:?} is no IP address");
        at.field("address_prefix").bad(why)
    })?;
    let length = range.prefix_len.unwrap_or_default();
    u8::try_from(length)
        .ok()
        .and_then(|length| IpNet::new(ip, length).ok())
        .map(|net| net.trunc())
        .ok_or_else(|| {
            let why = format!("{length} is too long for {prefix}");
            at.field("prefix_len").bad(why)
        })
}

/// Networks.
pub(super) fn cidrs(at: At<'_>, field: &str, ranges: &[CidrRange]) -> Decoded<Vec<IpNet>> {
    let each = ranges.iter().enumerate();
    each.map(|(i, range)| cidr(at.item(field, i), range))
        .collect()
}

/// Bytes given in the resource. Files and environment variables of the proxy's own machine are none
/// of the control plane's business.
pub(super) fn inline_bytes(at: At<'_>, source: Option<&DataSource>) -> Decoded<Option<Vec<u8>>> {
    use data_source::Specifier as S;
    match source.and_then(|source| source.specifier.as_ref()) {
        None => Ok(None),
        Some(S::InlineBytes(bytes)) => Ok(Some(bytes.clone())),
        Some(S::InlineString(text)) => Ok(Some(text.clone().into_bytes())),
        Some(S::Filename(_) | S::EnvironmentVariable(_)) => {
            Err(at.bad("only inline_bytes and inline_string are read"))
        }
    }
}

/// Takes an extension out of its `Any`.
pub(super) fn unpack<M: Message + Name + Default>(at: At<'_>, any: &Any) -> Decoded<M> {
    let message = outrigger_proto::any::unpack::<M>(any);
    let message = message.map_err(|error| at.bad(error.to_string()))?;
    at.suspect_if(message.encoded_len() != any.value.len());
    Ok(message)
}

/// An extension that is known by its type alone; what it holds was not read.
pub(super) fn by_type(at: At<'_>, any: &Any) {
    at.suspect_if(!any.value.is_empty());
}

/// A response status.
pub(super) fn status(at: At<'_>, code: u32, from: u16, to: u16) -> Decoded<StatusCode> {
    u16::try_from(code)
        .ok()
        .filter(|code| (from..=to).contains(code))
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| at.bad(format!("{code} is not between {from} and {to}")))
}

/// A header name that is not a pseudo-header.
pub(super) fn header_name(at: At<'_>, name: &str) -> Decoded<HeaderName> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| at.bad(format!("{name:?} is no header name")))
}

/// A header value.
pub(super) fn header_value(at: At<'_>, value: &[u8]) -> Decoded<HeaderValue> {
    HeaderValue::from_bytes(value).map_err(|_| at.bad("holds bytes that no header may"))
}

/// A text that must not be empty.
pub(super) fn required<'t>(at: At<'_>, text: &'t str) -> Decoded<&'t str> {
    if text.is_empty() {
        Err(at.bad("must not be empty"))
    } else {
        Ok(text)
    }
}

/// A finite number of at least `least`.
pub(super) fn number(at: At<'_>, value: f64, least: f64) -> Decoded<f64> {
    if value.is_finite() && value >= least {
        Ok(value)
    } else {
        Err(at.bad(format!("{value} is not a number of {least} or more")))
    }
}
