//! Finds what a message says that our definitions do not know, by path.
//!
//! Protobuf skips fields that a reader does not know. For a mesh that is dangerous: an operator's
//! setting would vanish without a word. So every resource is walked once, on its wire form, along
//! the descriptors, also through `Any`, and what would be skipped is reported.
//!
//! The input is hostile: the walk is bounded in depth, bytes and findings, never allocates in
//! proportion to what the input claims, and never panics. Malformed input ends the walk where it
//! is; refusing it is the decoder's part. Well-known types (`google.protobuf.*`) other than `Any`
//! are not entered.

use prost::Name;
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use crate::any::type_name;
use crate::descriptor;
use crate::path::{Path, Step, shortened};
use wire::{Field, Reader, Value};

mod wire;

/// Messages within messages, `Any` included, that are entered. Authorization rules in an HTTP filter
/// in a listener, the deepest that is met, reach about 20.
pub const MAX_DEPTH: usize = 32;
/// Findings kept of one message: enough to see what is going on.
pub const MAX_FINDINGS: usize = 64;
/// Bytes of one message that are looked at; a resource is far smaller.
pub const MAX_BYTES: usize = 64 << 20;

/// The package whose messages are not entered.
const WELL_KNOWN: &str = "google.protobuf";
/// The one exception.
const ANY: &str = "google.protobuf.Any";
/// Bytes of a map key that are kept for the path.
const MAX_KEY_BYTES: usize = 256;

pub use wire::WireType;

/// Everything that one message says and we do not know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order of the wire, at most [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// A limit ended the walk early: there may be more.
    pub truncated: bool,
}

/// One thing that we do not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where: `filters[1].typed_config<TcpProxy>.#77`.
    pub path: String,
    /// What.
    pub what: Unknown,
}

/// What kind of thing a [`Finding`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    /// A field of a message that we know.
    Field {
        /// Full name of the message.
        message: String,
        /// The field's number.
        number: u32,
        /// How it is encoded.
        wire_type: WireType,
    },
    /// An `Any` of a type that is not in our definitions.
    Type {
        /// As it stands there, shortened.
        type_url: String,
    },
}

/// Walks the encoded `M`.
pub fn scan<M: Name>(encoded: &[u8]) -> Report {
    scan_named(&M::full_name(), encoded)
}

/// Walks the resource in an `Any`, whose type need not be known at compile time.
pub fn scan_any(any: &prost_types::Any) -> Report {
    scan_named(type_name(&any.type_url), &any.value)
}

fn scan_named(full_name: &str, encoded: &[u8]) -> Report {
    let mut walk = Walk::default();
    let Some(message) = descriptor::pool().get_message_by_name(full_name) else {
        walk.found(Unknown::Type {
            type_url: shortened(full_name).to_owned(),
        });
        return walk.report;
    };
    if encoded.len() > MAX_BYTES {
        walk.report.truncated = true;
        return walk.report;
    }
    walk.message_or_any(&message, encoded, MAX_DEPTH);
    walk.report
}

#[derive(Default)]
struct Walk {
    path: Path,
    report: Report,
}

impl Walk {
    /// `depth` is how many more levels may be entered.
    fn message(&mut self, message: &MessageDescriptor, encoded: &[u8], depth: usize) {
        let mut indices = Indices::default();
        for Field { number, value } in Reader::new(encoded) {
            if self.is_full() {
                return;
            }
            let Some(field) = message.get_field(number) else {
                let wire_type = value.wire_type();
                let message = message.full_name().to_owned();
                self.at(Step::Number(number), |walk| {
                    walk.found(Unknown::Field {
                        message,
                        number,
                        wire_type,
                    });
                });
                continue;
            };
            let (Kind::Message(inner), Value::Bytes(encoded)) = (field.kind(), value) else {
                continue;
            };
            let is_any = inner.full_name() == ANY;
            if inner.package_name() == WELL_KNOWN && !is_any {
                continue;
            }
            if depth == 0 {
                self.report.truncated = true;
                return;
            }
            let element = Element {
                inner,
                encoded,
                index: indices.next(&field),
            };
            self.at(Step::Field(field.clone()), |walk| {
                walk.enter(&field, element, depth - 1)
            });
        }
    }

    /// Enters the message in a field.
    fn enter(&mut self, field: &FieldDescriptor, element: Element<'_>, depth: usize) {
        let Element {
            inner,
            encoded,
            index,
        } = element;
        if field.is_map() {
            self.map_entry(&inner, encoded, depth);
        } else if let Some(index) = index {
            self.at(Step::Index(index), |walk| {
                walk.message_or_any(&inner, encoded, depth)
            });
        } else {
            self.message_or_any(&inner, encoded, depth);
        }
    }

    fn message_or_any(&mut self, message: &MessageDescriptor, encoded: &[u8], depth: usize) {
        if message.full_name() == ANY {
            self.any(encoded, depth);
        } else {
            self.message(message, encoded, depth);
        }
    }

    fn any(&mut self, encoded: &[u8], depth: usize) {
        // Fields may come in any order, and the last of several counts.
        let (mut type_url, mut content) = (&b""[..], &b""[..]);
        for Field { number, value } in Reader::new(encoded) {
            match (number, value) {
                (1, Value::Bytes(bytes)) => type_url = bytes,
                (2, Value::Bytes(bytes)) => content = bytes,
                _ => {}
            }
        }
        let Ok(type_url) = std::str::from_utf8(type_url) else {
            return;
        };
        if type_url.is_empty() && content.is_empty() {
            return;
        }
        let name = type_name(type_url);
        let Some(message) = descriptor::pool().get_message_by_name(name) else {
            self.found(Unknown::Type {
                type_url: shortened(type_url).to_owned(),
            });
            return;
        };
        if depth == 0 {
            self.report.truncated = true;
            return;
        }
        let step = Step::Type(name.to_owned());
        self.at(step, |walk| {
            walk.message_or_any(&message, content, depth - 1)
        });
    }

    fn map_entry(&mut self, entry: &MessageDescriptor, encoded: &[u8], depth: usize) {
        let (mut key, mut content) = (String::new(), &b""[..]);
        for Field { number, value } in Reader::new(encoded) {
            match (number, value) {
                (1, Value::Bytes(bytes)) => {
                    let bytes = bytes.get(..MAX_KEY_BYTES).unwrap_or(bytes);
                    key = String::from_utf8_lossy(bytes).into_owned();
                }
                (1, Value::Number(number)) => key = number.to_string(),
                (2, Value::Bytes(bytes)) => content = bytes,
                _ => {}
            }
        }
        let Kind::Message(message) = entry.map_entry_value_field().kind() else {
            return;
        };
        if message.package_name() == WELL_KNOWN && message.full_name() != ANY {
            return;
        }
        self.at(Step::Key(key), |walk| {
            walk.message_or_any(&message, content, depth)
        });
    }

    /// Goes one step down, runs `visit` there, comes back up.
    fn at(&mut self, step: Step, visit: impl FnOnce(&mut Self)) {
        self.path.push(step);
        visit(self);
        self.path.pop();
    }

    fn is_full(&mut self) -> bool {
        let full = self.report.findings.len() >= MAX_FINDINGS;
        self.report.truncated |= full;
        full
    }

    fn found(&mut self, what: Unknown) {
        if !self.is_full() {
            self.report.findings.push(Finding {
                path: self.path.to_string(),
                what,
            });
        }
    }
}

/// A message found in a field.
struct Element<'a> {
    inner: MessageDescriptor,
    encoded: &'a [u8],
    /// Its place, if the field is repeated.
    index: Option<usize>,
}

/// How many elements of each repeated field were seen.
#[derive(Default)]
struct Indices(Vec<(u32, usize)>);

impl Indices {
    fn next(&mut self, field: &FieldDescriptor) -> Option<usize> {
        if !field.is_list() {
            return None;
        }
        let number = field.number();
        if let Some((_, seen)) = self.0.iter_mut().find(|(seen, _)| *seen == number) {
            *seen += 1;
            return Some(*seen);
        }
        self.0.push((number, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests;
