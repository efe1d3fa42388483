//! The access log: one line for each request and each opaque connection, those that never got a
//! route included.
//!
//! As text, eight columns that are always there and then what there is to say:
//!
//! ```text
//! TIME DIRECTION STATUS FLAG METHOD AUTHORITY PATH PROTOCOL key=value…
//! 2026-11-26T10:11:12.123Z outbound 503 UC GET cart:8080 /items HTTP/1.1 cause=UpstreamClosed …
//! ```
//!
//! As JSON, one object with the same names. `-` stands for what is not known. TIME is the end; FLAG
//! names the cause as in the table of faults. Durations are in milliseconds: `duration_ms` in all,
//! `first_byte_ms` to the first byte of the answer; of the last try, `queue_ms` is the wait for a
//! connection, `connect_ms` and `tls_ms` what a new one took (OB-06). What a client sent is cut at
//! [`MAX_TEXT`] bytes and escaped, so that it can neither flood the log nor forge a line.

use std::{
    cell::RefCell,
    io::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::Version;

use super::{ConnectionRecord, Record, lines::Lines, trace::hex};
use crate::fault::Fault;

/// Longest text of a client in a line.
pub const MAX_TEXT: usize = 1024;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// What has a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// What the configuration asks for (`access_log` of the filter that serves it), and what got to
    /// no filter.
    Configured,
}

/// Writes the lines.
#[derive(Clone, Debug)]
pub struct AccessLog {
    pub format: Format,
    pub scope: Scope,
    pub lines: Lines,
}

thread_local! {
    /// A line is put together here, one after the other, and so costs no allocation.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl AccessLog {
    pub(super) fn request(&self, record: &Record, ended: SystemTime) {
        if self.scope == Scope::All || record.logged {
            self.line(|line| request(line, record, ended));
        }
    }

    pub(super) fn connection(&self, record: &ConnectionRecord, ended: SystemTime) {
        if self.scope == Scope::All || record.logged {
            self.line(|line| connection(line, record, ended));
        }
    }

    fn line(&self, write: impl FnOnce(&mut Line<'_>)) {
        LINE.with_borrow_mut(|out| {
            out.clear();
            let mut line = Line {
                out,
                json: self.format == Format::Json,
                first: true,
            };
            line.begin();
            write(&mut line);
            line.end();
            self.lines.push(out);
        });
    }
}

const fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

fn request(line: &mut Line<'_>, record: &Record, ended: SystemTime) {
    line.time(ended);
    line.column("direction", record.direction.as_str());
    line.number("status", u64::from(record.code()));
    line.column("flag", flag(record.fault));
    line.column("method", record.method.as_str());
    line.column("authority", &record.authority);
    line.column("path", &record.path);
    line.column("protocol", protocol(record.version));
    line.pair("cause", record.fault.map_or("", Fault::name));
    line.pair("details", &record.details);
    if let Some(status) = record.grpc_status {
        line.number("grpc_status", u64::from(status));
    }
    line.pair("route", record.route.as_deref().unwrap_or_default());
    line.pair(
        "cluster",
        record.cluster.as_ref().map_or("", |c| c.as_str()),
    );
    line.shown("source", &record.source);
    line.shown("destination", &record.destination);
    line.pair("peer", record.peer.as_ref().map_or("", |id| id.as_str()));
    if let Some(last) = record.attempts.last() {
        line.shown("upstream", &last.endpoint);
    }
    let upstream_peer = record.upstream_peer.as_ref();
    line.pair("upstream_peer", upstream_peer.map_or("", |id| id.as_str()));
    line.number("bytes_in", record.bytes_in);
    line.number("bytes_out", record.bytes_out);
    line.millis("duration_ms", record.ended - record.started);
    if let Some(first_byte) = record.first_byte {
        line.millis("first_byte_ms", first_byte);
    }
    line.number("tries", record.attempts.len() as u64);
    if let Some(last) = record.attempts.last() {
        line.millis("queue_ms", last.queued());
        if !last.reused {
            line.millis("connect_ms", last.connect);
            line.millis("tls_ms", last.tls);
        }
    }
    if let Some(trace) = &record.trace {
        line.pair("trace_id", &hex(&trace.trace_id));
    }
}

fn connection(line: &mut Line<'_>, record: &ConnectionRecord, ended: SystemTime) {
    line.time(ended);
    line.column("direction", record.direction.as_str());
    line.column("status", "");
    line.column("flag", flag(record.fault));
    line.column("method", "");
    line.column("authority", "");
    line.column("path", "");
    line.column("protocol", "TCP");
    line.pair("cause", record.fault.map_or("", Fault::name));
    line.pair("details", &record.details);
    line.pair(
        "cluster",
        record.cluster.as_ref().map_or("", |c| c.as_str()),
    );
    line.shown("source", &record.source);
    line.shown("destination", &record.destination);
    line.pair("peer", record.peer.as_ref().map_or("", |id| id.as_str()));
    if let Some(endpoint) = &record.endpoint {
        line.shown("upstream", endpoint);
    }
    let upstream_peer = record.upstream_peer.as_ref();
    line.pair("upstream_peer", upstream_peer.map_or("", |id| id.as_str()));
    line.number("bytes_in", record.bytes_in);
    line.number("bytes_out", record.bytes_out);
    line.millis("duration_ms", record.ended - record.started);
}

fn flag(fault: Option<Fault>) -> &'static str {
    fault.map_or("", |fault| fault.row().flag)
}

/// A line in the making. Writing to a vector cannot fail, hence no results.
struct Line<'a> {
    out: &'a mut Vec<u8>,
    json: bool,
    first: bool,
}

impl Line<'_> {
    fn begin(&mut self) {
        if self.json {
            self.out.push(b'{');
        }
    }

    fn end(&mut self) {
        self.out
            .extend_from_slice(if self.json { b"}\n" } else { b"\n" });
    }

    fn key(&mut self, name: &str, column: bool) {
        if !std::mem::take(&mut self.first) {
            self.out.push(if self.json { b',' } else { b' ' });
        }
        if self.json {
            self.out.push(b'"');
            self.out.extend_from_slice(name.as_bytes());
            self.out.extend_from_slice(b"\":");
        } else if !column {
            self.out.extend_from_slice(name.as_bytes());
            self.out.push(b'=');
        }
    }

    fn raw(&mut self, arguments: std::fmt::Arguments<'_>) {
        let written = self.out.write_fmt(arguments);
        debug_assert!(written.is_ok());
    }

    fn time(&mut self, at: SystemTime) {
        self.key("time", true);
        if self.json {
            self.out.push(b'"');
        }
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (day, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, date) = civil(day);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let millis = since.subsec_millis();
        self.raw(format_args!(
            "{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"
        ));
        if self.json {
            self.out.push(b'"');
        }
    }

    /// One that has its place in the line.
    fn column(&mut self, name: &str, text: &str) {
        if text.is_empty() {
            self.key(name, true);
            self.out
                .extend_from_slice(if self.json { b"null" } else { b"-" });
        } else {
            self.key(name, true);
            self.text(text);
        }
    }

    /// One that is left out when empty.
    fn pair(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.key(name, false);
            self.text(text);
        }
    }

    /// One whose form needs no escaping.
    fn shown(&mut self, name: &str, value: &dyn std::fmt::Display) {
        self.key(name, false);
        if self.json {
            self.raw(format_args!("\"{value}\""));
        } else {
            self.raw(format_args!("{value}"));
        }
    }

    fn number(&mut self, name: &str, value: u64) {
        self.key(name, name == "status");
        self.raw(format_args!("{value}"));
    }

    fn millis(&mut self, name: &str, value: Duration) {
        self.key(name, false);
        let micros = value.as_micros();
        self.raw(format_args!("{}.{:03}", micros / 1000, micros % 1000));
    }

    fn text(&mut self, text: &str) {
        let (text, cut) = shortened(text);
        let plain = |c: u8| c.is_ascii_graphic() && !matches!(c, b'"' | b'\\' | b'=');
        let bare = !self.json && !cut && text != "-" && text.bytes().all(plain);
        if bare {
            self.out.extend_from_slice(text.as_bytes());
            return;
        }
        self.out.push(b'"');
        for c in text.chars() {
            match c {
                '"' | '\\' => self.raw(format_args!("\\{c}")),
                // Also what a terminal would obey or a reader take for a line's end.
                c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                    self.raw(format_args!("\\u{:04x}", u32::from(c)));
                }
                c => self.raw(format_args!("{c}")),
            }
        }
        self.out
            .extend_from_slice(if cut { "…\"".as_bytes() } else { b"\"" });
    }
}

fn shortened(text: &str) -> (&str, bool) {
    let end = text.floor_char_boundary(MAX_TEXT);
    (text.get(..end).unwrap_or_default(), end < text.len())
}

/// Year, month and day of a day since 1970 (Howard Hinnant, `civil_from_days`).
const fn civil(day: u64) -> (u64, u64, u64) {
    let z = day + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let date = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, date)
}

#[cfg(test)]
mod tests;
