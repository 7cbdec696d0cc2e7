//! Numbers for people.

/// Bytes with a binary prefix.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{} {}", significant(value), UNITS[unit]) }
}

/// Milliseconds in the unit that reads best.
pub fn duration(ms: f64) -> String {
    match ms {
        ms if ms >= 1000.0 => format!("{} s", significant(ms / 1000.0)),
        ms if ms >= 1.0 => format!("{} ms", significant(ms)),
        ms => format!("{} µs", significant(ms * 1000.0)),
    }
}

/// A rate with a decimal prefix, such as `305 GFLOP/s`.
pub fn rate(per_second: f64, unit: &str) -> String {
    let prefixes = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")];
    let fits = prefixes.iter().find(|(least, _)| per_second >= *least);
    fits.map_or_else(
        || format!("{} {unit}", significant(per_second)),
        |(least, prefix)| format!("{} {prefix}{unit}", significant(per_second / least)),
    )
}

/// Three significant digits, all of those before the point.
pub fn significant(value: f64) -> String {
    match value.abs() {
        x if x >= 100.0 => format!("{value:.0}"),
        x if x >= 10.0 => format!("{value:.1}"),
        x if x >= 1.0 => format!("{value:.2}"),
        x if x >= 0.1 => format!("{value:.3}"),
        x if x >= 0.01 => format!("{value:.4}"),
        0.0 => "0".into(),
        _ => format!("{value:.1e}"),
    }
}

/// Names in order of first appearance, each with how often it comes: `4 × matmul_tiled + merge_heads_each`.
pub fn counted(names: &[&str]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for name in names {
        match counts.iter_mut().find(|(known, _)| known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    let text = |(name, count): &(&str, usize)| if *count == 1 { (*name).into() } else { format!("{count} × {name}") };
    counts.iter().map(text).collect::<Vec<_>>().join(" + ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(8 << 20)], ["0 B", "1023 B", "1.50 KiB", "8.00 MiB"]);
        assert_eq!([duration(1234.0), duration(12.345), duration(0.5)], ["1.23 s", "12.3 ms", "500 µs"]);
        assert_eq!(significant(1e-7), "1.0e-7");
        assert_eq!(
            [rate(3.05e11, "FLOP/s"), rate(2e6, "B/s"), rate(7.0, "B/s")],
            ["305 GFLOP/s", "2.00 MB/s", "7.00 B/s"]
        );
        assert_eq!(counted(&["a", "b", "a"]), "2 × a + b");
    }
}
