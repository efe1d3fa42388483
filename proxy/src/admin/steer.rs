//! Pages that change something.

use http::Method;

use super::{
    Admin, Quit,
    call::{Answer, Call},
};
use crate::drain::Phase;

/// Tells clients to leave.
pub(super) fn drain(admin: &Admin, _: &Call<'_>) -> Answer {
    admin.shared.drain.advance(Phase::Draining);
    let open = admin.shared.drain.connections();
    tracing::info!(connections = open, "draining, as an operator told it");
    Answer::text(format!("OK, {open} connections are open\n"))
}

/// Ends the process.
pub(super) fn quit(admin: &Admin, call: &Call<'_>) -> Answer {
    let how = if call.has("graceful") {
        Quit::Gracefully
    } else {
        Quit::Now
    };
    tracing::info!(?how, "ending, as an operator told it");
    admin.quit.send_replace(Some(how));
    Answer::text("OK\n")
}

/// Shows the log filter or puts another in force.
pub(super) fn logging(admin: &Admin, call: &Call<'_>) -> Answer {
    let new = call.get("level");
    if new.is_some() != (call.method == Method::POST) {
        return Answer::refused("POST with level=FILTER changes, GET without it shows");
    }
    match (admin.log_filter)(new) {
        Ok(now) => Answer::text(format!("{now}\n")),
        Err(why) => Answer::refused(&why),
    }
}
