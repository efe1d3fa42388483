//! What the kernel knows of this process, under the names that every Prometheus client uses.

use std::fs;

use super::metrics::{PROCESS_CPU, PROCESS_FDS, PROCESS_MEMORY, PROCESS_START, Sheet, Value};

/// Clock ticks per second in `/proc`; `USER_HZ` is 100 on every Linux that runs Rust.
const TICKS: f64 = 100.0;

/// Adds the `process_*` metrics; one that cannot be read is left out.
pub(super) fn collect(sheet: &mut Sheet) {
    if let Some(kib) = status_kib("VmRSS:") {
        sheet.gauge(&PROCESS_MEMORY, [], kib * 1024.0);
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory itself.
        let open = entries.count().saturating_sub(1);
        sheet.gauge(&PROCESS_FDS, [], u32::try_from(open).unwrap_or(u32::MAX));
    }
    let Some(stat) = read("/proc/self/stat") else {
        return;
    };
    // proc(5): fields are counted from after the command, which may hold spaces.
    let Some((_, rest)) = stat.rsplit_once(')') else {
        return;
    };
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    if let (Some(user), Some(system)) = (number(11), number(12)) {
        sheet.add(&PROCESS_CPU, [], Value::Number((user + system) / TICKS));
    }
    if let (Some(started), Some(boot)) = (number(19), boot_time()) {
        sheet.gauge(&PROCESS_START, [], boot + started / TICKS);
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn status_kib(field: &str) -> Option<f64> {
    let status = read("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn boot_time() -> Option<f64> {
    let stat = read("/proc/stat")?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}
