//! The proxy's own log on standard error: what it does, not what it serves (that is the access
//! log).
//!
//! Lines go through a queue of their own, so that a stopped reader never stops a worker. The filter
//! can be changed while running.

use std::{
    io::{self, Write},
    time::Duration,
};

use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, fmt::MakeWriter, layer::SubscriberExt as _, reload,
    util::SubscriberInitExt as _,
};

use super::{access_log::Format, lines::Lines};

/// The running log.
#[derive(Clone, Debug)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    lines: Lines,
}

/// Why the log is not as asked.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("{0:?} is not a log filter: {1}")]
    Filter(String, String),
    #[error("the log's thread cannot be started: {0}")]
    Thread(#[from] io::Error),
    #[error("a log is running already")]
    Running,
}

impl Logging {
    /// Starts the log of the process.
    ///
    /// # Errors
    /// When `filter` is no filter, or a log is running already.
    pub fn start(filter: &str, format: Format) -> Result<Self, LoggingError> {
        let lines = Lines::start("log", io::stderr())?;
        let (filter, handle) = reload::Layer::new(parse(filter)?);
        let output = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(Writer(lines.clone()));
        let output = match format {
            Format::Text => output.boxed(),
            Format::Json => output.json().flatten_event(true).boxed(),
        };
        tracing_subscriber::registry()
            .with(filter)
            .with(output)
            .try_init()
            .map_err(|_| LoggingError::Running)?;
        Ok(Self {
            filter: handle,
            lines,
        })
    }

    /// Changes what is logged from now on, such as `info` or `outrigger_proxy=debug,warn`.
    ///
    /// # Errors
    /// When `filter` is no filter.
    pub fn set(&self, filter: &str) -> Result<(), LoggingError> {
        let new = parse(filter)?;
        let refused =
            |error: reload::Error| LoggingError::Filter(filter.to_owned(), error.to_string());
        self.filter.reload(new).map_err(refused)
    }

    /// The filter in force.
    #[must_use]
    pub fn filter(&self) -> String {
        let text = self.filter.with_current(ToString::to_string);
        text.unwrap_or_default()
    }

    /// Waits for the last lines to be written, at most `limit`.
    pub fn flush(&self, limit: Duration) {
        self.lines.flush(limit);
    }
}

fn parse(filter: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::try_new(filter)
        .map_err(|error| LoggingError::Filter(filter.to_owned(), error.to_string()))
}

/// Hands whole lines to the queue: the formatter writes each in one call.
#[derive(Clone, Debug)]
struct Writer(Lines);

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_checked_before_it_is_used() {
        assert!(parse("outrigger_proxy=debug,warn").is_ok());
        let error = parse("outrigger_proxy=loud").expect_err("no such level");
        assert!(error.to_string().contains("loud"), "{error}");
    }

    #[test]
    fn the_filter_can_be_changed_while_running() {
        let logging = Logging::start("warn", Format::Text).expect("the first");
        assert!(tracing::enabled!(tracing::Level::WARN));
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        logging.set("debug").expect("a filter");
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        assert!(logging.set("=loud=").is_err());
        assert_eq!(logging.filter(), "debug");
        logging.set("warn").expect("a filter");
        assert!(matches!(
            Logging::start("warn", Format::Text),
            Err(LoggingError::Running)
        ));
    }
}
