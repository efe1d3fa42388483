//! How a head was spelt: names of fields in their order and case, and the reason phrase.

use bytes::Bytes;
use http::{HeaderName, StatusCode};

/// The spelling and order in which field names came, and an unusual reason phrase, for passing on
/// to a peer that reads them byte for byte. It shares the buffer of the head it describes.
///
/// It is advice: the encoder takes from it how to write the fields that a message has, never which
/// fields those are.
#[derive(Clone, Debug)]
pub struct OriginalNames {
    head: Bytes,
    spans: Vec<Span>,
    reason: Option<(StatusCode, Bytes)>,
}

/// Where one name stands in the head.
#[derive(Clone, Copy, Debug)]
struct Span {
    at: u32,
    len: u16,
    /// How many fields of the same name came before.
    nth: u16,
}

impl OriginalNames {
    /// For a head of about `fields` fields.
    pub(super) fn new(head: &Bytes, fields: usize) -> Self {
        Self {
            head: head.clone(),
            spans: Vec::with_capacity(fields),
            reason: None,
        }
    }

    /// Adds the next name, which must lie in the head. `repeated` says that it came before.
    pub(super) fn push(&mut self, name: &str, repeated: bool) {
        let at = name.as_ptr().addr().wrapping_sub(self.head.as_ptr().addr());
        let nth = if repeated { self.count(name) } else { 0 };
        if let (Ok(at), Ok(len), Ok(nth)) = (
            u32::try_from(at),
            u16::try_from(name.len()),
            u16::try_from(nth),
        ) {
            self.spans.push(Span { at, len, nth });
        }
    }

    /// Keeps a reason phrase that is not the usual one of its status.
    pub(super) fn set_reason(&mut self, status: StatusCode, reason: &str) {
        if status.canonical_reason() != Some(reason) {
            self.reason = Some((status, self.head.slice_ref(reason.as_bytes())));
        }
    }

    /// The reason phrase that came with `status`, if it was not the usual one.
    pub(super) fn reason(&self, status: StatusCode) -> Option<&[u8]> {
        match &self.reason {
            Some((of, reason)) if *of == status => Some(reason),
            _ => None,
        }
    }

    /// The names as they came, each with the number of equal ones before it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], usize)> {
        self.spans
            .iter()
            .filter_map(|span| Some((self.text(*span)?, usize::from(span.nth))))
    }

    /// How many of the names are this one.
    pub(super) fn count(&self, name: &str) -> usize {
        let same = |span: &&Span| {
            usize::from(span.len) == name.len()
                && self
                    .text(**span)
                    .is_some_and(|text| text.eq_ignore_ascii_case(name.as_bytes()))
        };
        self.spans.iter().filter(same).count()
    }

    /// How many fields of this name came, by its lower-case form.
    pub(super) fn count_of(&self, name: &HeaderName) -> usize {
        self.count(name.as_str())
    }

    fn text(&self, span: Span) -> Option<&[u8]> {
        let at = usize::try_from(span.at).ok()?;
        self.head.get(at..at + usize::from(span.len))
    }
}
