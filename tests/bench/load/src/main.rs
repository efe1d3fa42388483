//! Load for `tests/bench/run`.
//!
//!     outrigger-bench-load send --to ADDR --protocol http1|http2|grpc [--connections N] [--streams N]
//!                               [--fresh] (--rate N --seconds N [--warm-up N] | --count N)
//!     outrigger-bench-load hold --to ADDR --connections N --seconds N [--silent]
//!
//! `send --rate` is an open loop: requests are due at moments drawn from a Poisson process with a
//! fixed seed, so that everything measured meets the same bursts, and each latency counts from the
//! moment that the request was due, also when no connection was free for it. A server that stalls
//! cannot hide its queue. `lag` is how late this program itself was; where it is large, the
//! latencies say nothing. `send --count` is a closed loop of exactly that many requests.
//! `--fresh` makes a new connection for each. Every answer is checked in full; what is not the
//! expected answer is an error.
//!
//! `hold` opens connections, has one answer on each (none with `--silent`), says `held` and waits.

mod client;
mod hold;
mod pace;
mod send;
mod tally;

use std::collections::HashMap;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// `--name value` and `--flag`.
struct Args(HashMap<String, String>);

impl Args {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut found = HashMap::new();
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            let name = word
                .strip_prefix("--")
                .ok_or_else(|| format!("{word:?} is not an option"))?;
            let value = words.next_if(|next| !next.starts_with("--"));
            found.insert(name.to_owned(), value.unwrap_or_default());
        }
        Ok(Self(found))
    }

    fn text(&self, name: &str) -> Result<&str> {
        let found = self.0.get(name).map(String::as_str);
        found.ok_or_else(|| format!("--{name} is missing").into())
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        let parse = |text: &String| {
            text.parse::<f64>()
                .ok()
                .filter(|number| number.is_finite() && *number >= 0.0)
                .ok_or_else(|| format!("--{name} {text:?} is no number").into())
        };
        self.0.get(name).map(parse).transpose()
    }

    fn count(&self, name: &str, default: usize) -> Result<usize> {
        let parse = |text: &String| {
            text.parse()
                .map_err(|error| format!("--{name} {text:?}: {error}").into())
        };
        self.0.get(name).map_or(Ok(default), parse)
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let args = Args::parse(words)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        match command.as_str() {
            "send" => send::run(&args).await,
            "hold" => hold::run(&args).await,
            other => Err(format!("unknown command {other:?}: send or hold").into()),
        }
    })
}
