//! Trace context in and out: W3C Trace Context and B3 (one header or several).
//!
//! The caller's context is taken from `traceparent` when that is valid, else from `b3`, else from
//! the
//! `x-b3-*` headers. Whatever families came in go out again, all naming the proxy's own span:
//! one that was passed on stale would flatten the tree (OB-01). What is malformed starts a new
//! trace.

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::{Rng, RngExt};

use crate::config::units::Fraction;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
const B3_MULTI: [HeaderName; 5] = [B3_TRACE_ID, B3_SPAN_ID, B3_PARENT, B3_SAMPLED, B3_FLAGS];

/// Sixteen bytes, not all zero.
pub type TraceId = [u8; 16];
/// Eight bytes, not all zero.
pub type SpanId = [u8; 8];

/// Where a request stands in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: TraceId,
    /// The caller's span; `None` when the trace begins here.
    pub parent: Option<SpanId>,
    /// What the endpoint of the first try is told is its caller. It is the request's own span, as
    /// long as one try is all there is: a request and its only try are one span, and a trace has
    /// one level for each proxy that it passed.
    pub span_id: SpanId,
    /// The request's own span once there are more tries, each of which then has one below it.
    above: Option<SpanId>,
    tries: u32,
    /// Whether its spans are exported.
    pub sampled: bool,
    came: Came,
    /// False when this proxy makes no spans here and so leaves the headers as they are.
    ours: bool,
}

/// Header families that came in, well-formed or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Came {
    w3c: bool,
    b3: bool,
    b3_multi: bool,
    /// `traceparent` was valid, so `tracestate` belongs to it.
    w3c_valid: bool,
    debug: bool,
}

/// What a family says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    ids: Option<(TraceId, SpanId)>,
    sampled: Option<bool>,
    debug: bool,
}

impl TraceContext {
    /// Reads the context of a request and gives it a span. `sampling` is the share of requests
    /// without a decision of their caller that are traced; with `None` nothing is traced here, and
    /// a context is only taken note of.
    #[must_use]
    pub fn extract(
        headers: &HeaderMap,
        sampling: Option<Fraction>,
        rng: &mut impl Rng,
    ) -> Option<Self> {
        let mut came = Came::default();
        // One look at each name is cheaper than a search for each of seven.
        for name in headers.keys() {
            came.w3c |= *name == TRACEPARENT;
            came.b3 |= *name == B3;
            came.b3_multi |= B3_MULTI.contains(name);
        }
        let any = came.w3c || came.b3 || came.b3_multi;
        if !any && sampling.is_none() {
            return None;
        }
        let mut said = Said::default();
        if came.w3c
            && let Some(valid) = one(headers, &TRACEPARENT).and_then(w3c)
        {
            (said, came.w3c_valid) = (valid, true);
        } else if came.b3
            && let Some(valid) = one(headers, &B3).and_then(b3_single)
        {
            said = valid;
        } else if came.b3_multi
            && let Some(valid) = b3_multi(headers)
        {
            said = valid;
        }
        if said.ids.is_none() && sampling.is_none() {
            return None;
        }
        came.debug = said.debug;
        let sampled = match (said.sampled, sampling) {
            (Some(decided), Some(_)) => decided,
            (None, Some(share)) => share.hits(rng),
            (_, None) => false,
        };
        let (trace_id, parent) = match said.ids {
            Some((trace_id, parent)) => (trace_id, Some(parent)),
            None => (nonzero(rng.random::<u128>().to_be_bytes()), None),
        };
        Some(Self {
            trace_id,
            parent,
            span_id: draw_span(rng),
            above: None,
            tries: 0,
            sampled,
            came,
            ours: sampling.is_some(),
        })
    }

    /// The span of the next try.
    pub fn next_try(&mut self, rng: &mut impl Rng) -> SpanId {
        self.tries = self.tries.saturating_add(1);
        if self.tries == 1 {
            return self.span_id;
        }
        self.above.get_or_insert_with(|| draw_span(rng));
        draw_span(rng)
    }

    /// The span of the request itself, once its tries are over.
    #[must_use]
    pub const fn request_span(&self) -> SpanId {
        match self.above {
            Some(above) => above,
            None => self.span_id,
        }
    }

    /// Makes `span` the caller of whoever reads `headers`, in every family that came in; in W3C's
    /// if none did.
    pub fn inject(&self, headers: &mut HeaderMap, span: &SpanId) {
        if !self.ours {
            return;
        }
        let Came {
            w3c,
            b3,
            b3_multi,
            w3c_valid,
            debug,
        } = self.came;
        if w3c || !(b3 || b3_multi) {
            let flags = [u8::from(self.sampled)];
            let parts: [&[u8]; 4] = [&[0], &self.trace_id, span, &flags];
            set(headers, TRACEPARENT, &Text::joined(&parts));
        }
        if !w3c_valid {
            // W3C Trace Context §3.3: it belongs to a traceparent that could be read.
            headers.remove(TRACESTATE);
        }
        let flag = match (debug, self.sampled) {
            (true, _) => "d",
            (false, true) => "1",
            (false, false) => "0",
        };
        if b3 {
            let mut text = Text::joined(&[&self.trace_id, span]);
            text.push(b"-");
            text.push(flag.as_bytes());
            set(headers, B3, &text);
        }
        if b3_multi {
            headers.remove(B3_PARENT);
            set(headers, B3_TRACE_ID, &Text::joined(&[&self.trace_id]));
            set(headers, B3_SPAN_ID, &Text::joined(&[span]));
            if debug {
                // It implies the decision, which must not be said twice.
                headers.remove(B3_SAMPLED);
                headers.insert(B3_FLAGS, HeaderValue::from_static("1"));
            } else {
                headers.remove(B3_FLAGS);
                headers.insert(B3_SAMPLED, HeaderValue::from_static(flag));
            }
        }
    }
}

/// The value of a header that must come once.
fn one<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut all = headers.get_all(name).iter();
    let first = all.next()?;
    if all.next().is_some() {
        return None;
    }
    first.to_str().ok()
}

fn set(headers: &mut HeaderMap, name: HeaderName, text: &Text) {
    if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
        headers.insert(name, value);
    }
}

/// Longest text of a context: version, trace, span and flags of a `traceparent`.
const MAX_TEXT: usize = 2 + 1 + 32 + 1 + 16 + 1 + 2;

/// A context in a header. On the stack, since every request has one written, sampled or not.
struct Text {
    bytes: [u8; MAX_TEXT],
    len: usize,
}

impl Text {
    /// The parts in hexadecimal, with dashes between them.
    fn joined(parts: &[&[u8]]) -> Self {
        let mut text = Self {
            bytes: [0; MAX_TEXT],
            len: 0,
        };
        for (n, part) in parts.iter().enumerate() {
            if n > 0 {
                text.push(b"-");
            }
            let room = text.bytes.get_mut(text.len..).unwrap_or_default();
            let pairs = room.as_chunks_mut::<2>().0;
            for (pair, byte) in pairs.iter_mut().zip(*part) {
                *pair = hex_digits(*byte);
                text.len += 2;
            }
        }
        text
    }

    fn push(&mut self, more: &[u8]) {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(more) {
            *to = *from;
            self.len += 1;
        }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// `traceparent` (W3C Trace Context §3.2).
fn w3c(text: &str) -> Option<Said> {
    let (version, rest) = text.split_once('-')?;
    let [version] = unhex(version)?;
    let (trace_id, rest) = rest.split_once('-')?;
    let (span_id, rest) = rest.split_once('-')?;
    // A later version may have more after the flags; this one may not.
    let flags = match (version, rest.split_once('-')) {
        (0xff, _) | (0, Some(_)) => return None,
        (_, Some((flags, _))) => flags,
        (_, None) => rest,
    };
    let [flags] = unhex(flags)?;
    Some(Said {
        ids: Some((id(trace_id)?, id(span_id)?)),
        sampled: Some(flags & 1 == 1),
        debug: false,
    })
}

/// `b3: {trace}-{span}[-{decision}[-{parent}]]`, or a decision alone.
fn b3_single(text: &str) -> Option<Said> {
    let decision = |text: &str| match text {
        "0" => Some((Some(false), false)),
        "1" => Some((Some(true), false)),
        "d" => Some((Some(true), true)),
        _ => None,
    };
    if let Some((sampled, debug)) = decision(text) {
        return Some(Said {
            ids: None,
            sampled,
            debug,
        });
    }
    let mut parts = text.split('-');
    let ids = (b3_trace_id(parts.next()?)?, id(parts.next()?)?);
    let (sampled, debug) = parts.next().map_or(Some((None, false)), decision)?;
    if let Some(parent) = parts.next() {
        id::<8>(parent)?;
    }
    parts.next().is_none().then_some(Said {
        ids: Some(ids),
        sampled,
        debug,
    })
}

fn b3_multi(headers: &HeaderMap) -> Option<Said> {
    let debug = one(headers, &B3_FLAGS) == Some("1");
    let sampled = match one(headers, &B3_SAMPLED) {
        _ if debug => Some(true),
        // Older tracers write words.
        Some("1" | "true") => Some(true),
        Some("0" | "false") => Some(false),
        _ => None,
    };
    let ids = match (one(headers, &B3_TRACE_ID), one(headers, &B3_SPAN_ID)) {
        (Some(trace), Some(span)) => Some((b3_trace_id(trace)?, id(span)?)),
        (None, None) => None,
        _ => return None,
    };
    Some(Said {
        ids,
        sampled,
        debug,
    })
}

/// 64-bit ids are the low half of 128-bit ones.
fn b3_trace_id(text: &str) -> Option<TraceId> {
    if text.len() == 16 {
        let low: SpanId = id(text)?;
        let mut whole = TraceId::default();
        whole
            .iter_mut()
            .skip(8)
            .zip(low)
            .for_each(|(to, from)| *to = from);
        return Some(whole);
    }
    id(text)
}

fn id<const N: usize>(text: &str) -> Option<[u8; N]> {
    unhex(text).filter(|bytes| bytes.iter().any(|byte| *byte != 0))
}

/// Lower-case hexadecimal only, as both standards have it.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| hex_digits(*byte));
    digits.map(char::from).collect()
}

const fn hex_digits(byte: u8) -> [u8; 2] {
    [hex_digit(byte >> 4), hex_digit(byte & 0xf)]
}

const fn hex_digit(half: u8) -> u8 {
    match half {
        0..10 => b'0' + half,
        _ => b'a' + half - 10,
    }
}

/// In one draw; bytes would be drawn one by one.
fn draw_span(rng: &mut impl Rng) -> SpanId {
    nonzero(rng.random::<u64>().to_be_bytes())
}

fn nonzero<const N: usize>(mut bytes: [u8; N]) -> [u8; N] {
    if bytes.iter().all(|byte| *byte == 0)
        && let Some(last) = bytes.last_mut()
    {
        *last = 1;
    }
    bytes
}

#[cfg(test)]
mod tests;
