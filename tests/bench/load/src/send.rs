//! Requests: at a rate whatever the answers do, or one after the other.

use std::{cell::RefCell, rc::Rc, time::Duration};

use serde_json::json;
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, timeout},
};

use crate::{
    Args, Result,
    client::{Client, Protocol},
    pace::{Arrivals, Timer},
    tally::Tally,
};

/// Requests that may wait or be under way at once; a server that is further behind is down.
const MAX_OUTSTANDING: usize = 100_000;
/// For the answers that are still missing when the last request is out.
const GRACE: Duration = Duration::from_secs(10);
/// Between the start and the first request.
const RUN_UP: Duration = Duration::from_millis(50);

pub(crate) async fn run(args: &Args) -> Result<()> {
    let protocol: Protocol = args.text("protocol")?.parse()?;
    let to = args.text("to")?.parse()?;
    let connections = args.count("connections", 64)?;
    let streams = args.count("streams", 1)?;
    let fresh = args.has("fresh");
    if fresh && protocol != Protocol::Http1 {
        return Err("--fresh is for http1".into());
    }
    let client = Rc::new(Client::new(to, protocol, connections, streams, fresh).await?);
    let tally = Rc::new(RefCell::new(Tally::default()));
    let took = match args.number("rate")? {
        Some(rate) if rate > 0.0 => {
            let seconds = args.number("seconds")?.ok_or("--seconds is missing")?;
            let seconds = Duration::try_from_secs_f64(seconds)?;
            let warm_up = Duration::try_from_secs_f64(args.number("warm-up")?.unwrap_or(0.0))?;
            open_loop(&client, &tally, rate, warm_up, seconds).await?
        }
        _ => {
            let count = args.count("count", 0)?;
            closed_loop(&client, &tally, count, connections * streams).await?
        }
    };
    let tally = Rc::try_unwrap(tally).map_err(|_| "a task outlived the run")?;
    let tally = tally.into_inner();
    let requests = tally.latency.len();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53 requests")]
    let per_second = requests as f64 / took.as_secs_f64();
    let out = json!({
        "requests": requests, "errors": tally.errors, "last_error": tally.last_error,
        "seconds": took.as_secs_f64(), "per_second": per_second,
        "latency": tally.latency.json(), "lag": tally.lag.json(),
    });
    println!("{out}");
    Ok(())
}

/// Returns the time measured, from the end of the warm-up to the last answer that counts.
async fn open_loop(
    client: &Rc<Client>,
    tally: &Rc<RefCell<Tally>>,
    rate: f64,
    warm_up: Duration,
    seconds: Duration,
) -> Result<Duration> {
    let timer = Timer::new()?;
    let begin = Instant::now() + RUN_UP;
    let counted_from = begin + warm_up;
    let end = counted_from + seconds;
    let mut under_way = JoinSet::new();
    for due in Arrivals::new(rate, begin).take_while(|due| *due < end) {
        timer.wait_until(due).await?;
        let counted = due >= counted_from;
        if counted {
            tally.borrow_mut().lag.add(due.elapsed());
        }
        if under_way.len() >= MAX_OUTSTANDING {
            tally.borrow_mut().failed("too many requests wait".into());
            continue;
        }
        let (client, tally) = (Rc::clone(client), Rc::clone(tally));
        under_way.spawn_local(async move {
            let result = client.exchange().await;
            if counted {
                record(&tally, due, result);
            }
        });
        while under_way.try_join_next().is_some() {}
        // Requests that are due at the same time are sent before the next is waited for.
        yield_now().await;
    }
    let rest = async { while under_way.join_next().await.is_some() {} };
    if timeout(GRACE, rest).await.is_err() {
        let missing = under_way.len();
        tally.borrow_mut().errors += u64::try_from(missing)?;
        tally.borrow_mut().last_error = format!("{missing} were not answered in {GRACE:?}");
        under_way.shutdown().await;
    }
    Ok(counted_from.elapsed())
}

async fn closed_loop(
    client: &Rc<Client>,
    tally: &Rc<RefCell<Tally>>,
    count: usize,
    workers: usize,
) -> Result<Duration> {
    let begin = Instant::now();
    let left = Rc::new(RefCell::new(count));
    let mut under_way = JoinSet::new();
    for _ in 0..workers {
        let (client, tally, left) = (Rc::clone(client), Rc::clone(tally), Rc::clone(&left));
        under_way.spawn_local(async move {
            while left.borrow().checked_sub(1).is_some() {
                *left.borrow_mut() -= 1;
                let due = Instant::now();
                let result = client.exchange().await;
                record(&tally, due, result);
            }
        });
    }
    while let Some(done) = under_way.join_next().await {
        done?;
    }
    Ok(begin.elapsed())
}

fn record(tally: &RefCell<Tally>, due: Instant, result: Result<()>) {
    let mut tally = tally.borrow_mut();
    match result {
        Ok(()) => tally.latency.add(due.elapsed()),
        Err(error) => tally.failed(error.to_string()),
    }
}
