//! The commands `regard compare` and `regard report`: what they print and write, exit codes, and what they say of broken files.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

const PEERS: &str = "benches/results/2026-11-21-peers-burn.jsonl";

/// Exit code, what was printed, and what was complained of.
fn regard(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_regard"));
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().expect("it starts");
    let text = |bytes| String::from_utf8(bytes).expect("it prints text");
    (output.status.code().expect("no signal ended it"), text(output.stdout), text(output.stderr))
}

fn file(name: &str, lines: &[Value]) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("report_{name}"));
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, text).expect("the folder for tests can be written");
    path.display().to_string()
}

/// A line whose runs spread by a percent.
fn line(problem: &str, path: &str, ms: f64) -> Value {
    let samples: Vec<f64> = (0..50).map(|at| ms * (1.0 + 0.001 * f64::from(at * 17 % 11 - 5))).collect();
    json!({
        "schema": "regard.bench/3", "version": "0.1.0", "date": "2026-11-21T10:00:00Z", "suite": "quick", "problem": problem,
        "device": "a device", "path": path, "dispatches": 1, "flops": 2_000_000, "flops_exact": 1_000_000, "bytes": 10_000,
        "peak_bytes": 20_000, "clock": "host clock", "cache": "cold", "runs": 50, "median_ms": ms, "p05_ms": 0.995 * ms,
        "p95_ms": 1.005 * ms, "iqr_ms": 0.005 * ms, "min_ms": 0.995 * ms, "max_ms": 1.005 * ms, "outliers": 0, "tflops": 0.5,
        "tflops_exact": 0.25, "gbps": 12.0, "samples_ms": samples, "bound": "arithmetic", "bound_share": 0.5,
        "bound_per_second": 5e11, "steps": [{"step": path, "ms": 0.75 * ms, "flops": 900_000, "bytes": 5_000},
            {"step": "merge", "ms": 0.25 * ms, "flops": 100_000, "bytes": 5_000}],
        "max_error": 1e-7, "error_of_scale": 1e-6, "tolerance_of_scale": 1e-5, "checked_rows": "all", "warnings": [],
    })
}

/// As many processes as make an interval of their own.
fn processes(problem: &str, ms: f64) -> Vec<Value> {
    [1.0, 1.01, 1.005, 1.02, 1.2].map(|factor| line(problem, "x", ms * factor)).into()
}

#[test]
fn a_slowdown_is_an_alarm_and_noise_is_none() {
    let old = file("old", &[processes("p", 1.0), processes("q", 1.0)].concat());
    let same = file("same", &[processes("p", 1.01), processes("q", 0.99)].concat());
    let slow = file("slow", &[processes("p", 1.1), processes("q", 0.9)].concat());
    let (code, printed, complaint) = regard(&["compare", &old, &same, "--fail-if-slower", "5%"]);
    assert_eq!((code, complaint.as_str()), (0, ""), "{printed}");
    assert!(printed.contains("no problem is slower by more than 5 %"), "{printed}");
    let (code, printed, _) = regard(&["compare", &old, &slow, "--fail-if-slower", "5%"]);
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("1 problem is slower by more than 5 %, or has no time any more: p"), "{printed}");
    let at = |text: &str| printed.find(text).unwrap_or_else(|| panic!("`{text}` in {printed}"));
    assert!(
        at("\nslower\n") < at("\nfaster\n") && at("\nfaster\n") < at("geometric mean of the ratios 0.995"),
        "{printed}"
    );
    assert!(printed.lines().all(|line| line.chars().count() <= 100), "{printed}");
    // Without a limit it is no failure.
    assert_eq!(regard(&["compare", &old, &slow]).0, 0);
}

#[test]
fn json_has_an_object_for_each_problem_and_a_summary() {
    let old = file("json_old", &processes("p", 1.0));
    let new = file("json_new", &processes("p", 1.1));
    let (code, printed, _) = regard(&["compare", &old, &new, "--json", "--fail-if-slower", "5%"]);
    assert_eq!(code, 1);
    let lines: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let [entry, summary] = &lines[..] else { panic!("{printed}") };
    assert_eq!(
        (&entry["verdict"], &entry["problem"], &entry["spread"]),
        (&"slower".into(), &"p".into(), &"measured".into())
    );
    assert!((entry["ratio"].as_f64().expect("a ratio") - 1.1).abs() < 1e-9);
    assert_eq!((&entry["old"]["rounds"], &summary["slower"], &summary["alarms"]), (&5.into(), &1.into(), &1.into()));
}

#[test]
fn peers_and_lines_without_runs_are_compared_by_medians() {
    let (code, printed, complaint) = regard(&["compare", "benches/results/2026-11-21-peers.jsonl", PEERS]);
    assert_eq!((code, complaint.as_str()), (0, ""), "{printed}");
    let unwrapped = printed.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(unwrapped.contains("12 compared by medians instead, as a line does not hold its runs"), "{printed}");
    assert!(printed.contains("      path changed: attention_coop → attention_lanes\n"), "{printed}");
    assert!(
        printed.contains("burn-wgpu: b=1,h=8,s=1024,d=64") && printed.contains("      path: flash_attention"),
        "{printed}"
    );
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let good = file("good", &[line("p", "x", 1.0)]);
    let other = file("other", &[line("q", "x", 1.0)]);
    let empty = file("empty", &[]);
    let broken = PathBuf::from(&empty).with_file_name("report_broken");
    std::fs::write(&broken, "{}\nmedian 3 ms\n").expect("the folder for tests can be written");
    let broken = broken.display().to_string();
    let torch = "benches/results/2026-11-21-cpu-2-threads-pytorch.jsonl";
    for (old, new, wanted) in [
        ("no/such/file", good.as_str(), "no/such/file: No such file"),
        (&good, &empty, "the file has no lines"),
        (&good, &broken, "line 1 has no key `schema`"),
        (&good, torch, "line 1 has schema `regard.peer/1`; regard.bench/1, "),
        (&good, &other, "no problem in common"),
        (&good, PEERS, "no device in common"),
    ] {
        let (code, printed, complaint) = regard(&["compare", old, new]);
        assert_eq!((code, printed.as_str()), (2, ""), "{complaint}");
        assert!(complaint.starts_with("error: ") && complaint.contains(wanted), "{complaint}");
    }
    let (code, _, complaint) = regard(&["compare", &good, &good, "--fail-if-slower", "5"]);
    assert!(code == 2 && complaint.contains("`5` is no percentage"), "{complaint}");
}

/// First results of five processes with either state of the caches.
fn latency(ms: f64) -> Value {
    let process = |ms: f64| {
        json!({
            "first_result_ms": ms, "phases": {"inputs_ms": 1.0, "open_ms": 2.0, "plan_ms": 3.0, "run_ms": ms - 5.0, "result": 7},
            "steady": {"plan_ms": 0.5, "run_ms": 4.0, "submit_us": 20.0},
        })
    };
    let processes: Vec<_> = [1.0, 1.01, 1.02, 0.99, 1.0].map(|factor| process(ms * factor)).into();
    json!({
        "schema": "regard.latency/1", "problem": "a layer", "device": "a device", "cold": processes, "cached": processes[..2],
    })
}

#[test]
fn first_results_are_compared() {
    let [old, new] = [("latency_old", 100.0), ("latency_new", 150.0)].map(|(name, ms)| file(name, &[latency(ms)]));
    let (code, printed, complaint) = regard(&["compare", &old, &new, "--fail-if-slower", "5%"]);
    assert_eq!((code, complaint.as_str()), (1, ""), "{printed}");
    let row = printed.lines().find(|line| line.starts_with("  first result, caches empty")).unwrap_or_default();
    assert!(row.contains("100 ms") && row.contains("150 ms") && row.contains(" 1.500 "), "{printed}");
    let row = printed.lines().find(|line| line.starts_with("  first result, caches filled")).unwrap_or_default();
    assert!(row.ends_with('–'), "two processes have no interval: {printed}");
    assert!(printed.contains("There is no interval where"), "{printed}");
    assert!(
        printed.contains("first results slower by more than 5 %: first result, caches empty · first run,"),
        "{printed}"
    );
    assert!(printed.lines().all(|line| line.chars().count() <= 100), "{printed}");
    assert_eq!(regard(&["compare", &old, &old, "--fail-if-slower", "5%"]).0, 0);
    let (code, printed, _) = regard(&["compare", &old, &new, "--json"]);
    let lines: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((code, lines.len(), &lines[0]["part"]), (0, 13, &"first result".into()), "{printed}");
    assert!(lines[0]["interval"]["low"].as_f64() > Some(1.0) && lines[6]["interval"].is_null(), "{printed}");
    // Beside lines about problems, both are there.
    let both = file("latency_both", &[line("p", "x", 1.0), latency(100.0)]);
    let (_, printed, _) = regard(&["compare", &both, &both]);
    assert!(printed.contains("1 unchanged") && printed.contains("first results"), "{printed}");
    let (code, _, complaint) = regard(&["compare", &file("no_latency", &[line("p", "x", 1.0)]), &old]);
    assert!(code == 2 && complaint.contains("no problem in common"), "{complaint}");
}

#[test]
fn first_results_have_a_table_in_the_report() {
    let html = report("report_latency.html", &[&file("latency_alone", &[latency(100.0)])]);
    assert!(html.contains("<h2 id=\"latency-title\">First results</h2>") && html.contains("100 ms<small>"), "{html}");
    assert!(!html.contains("id=\"lines\"") && !html.contains("role=\"img\"") && !html.contains("href=\"#devices\""));
    let html = report("report_latency_both.html", &[&file("latency_beside", &[line("p", "x", 1.0), latency(100.0)])]);
    assert!(html.contains("id=\"latency\"") && html.contains("id=\"lines\""));
}

#[test]
fn each_kind_of_arithmetic_has_its_ceiling() {
    let with_peaks = |problem: &str, matrices: u64| {
        let mut line = line(problem, "x", 1.0);
        for (key, value) in [("peak_f32", 5e11), ("peak_f16", 1e12), ("peak_matrices", 8e12), ("peak_bandwidth", 1e11)]
        {
            line[key] = value.into();
        }
        line["flops_matrices"] = matrices.into();
        line["bound_arithmetic"] = if matrices > 0 { "matrices" } else { "f32" }.into();
        line
    };
    let lines = [with_peaks("b=1,h=2,s=64,d=8", 0), with_peaks("b=1,h=2,s=128,d=8", 1_000_000)];
    let html = report("report_ceilings.html", &[&file("ceilings", &lines)]);
    assert!(html.contains("8.00 TFLOP/s (matrices), 1.00 TFLOP/s (f16), 500 GFLOP/s (f32)"), "{html}");
    assert!(
        html.contains("<small>arithmetic on matrices</small>") && html.contains("<small>arithmetic in f32</small>")
    );
    let plot = &html[html.find("roofline-description").expect("the plot")..];
    let plot = &plot[..plot.find("</svg>").expect("its end")];
    assert!(plot.contains(">\nmatrices\n<") && plot.contains(">\nf32\n<"), "{plot}");
    // No line computes in f16, and a ceiling that nothing meets is left out.
    assert!(!plot.contains(">\nf16\n<"), "{plot}");
}

fn report(name: &str, files: &[&str]) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let out = path.display().to_string();
    let (code, _, complaint) = regard(&[&["report"], files, &["--out", &out]].concat());
    assert_eq!((code, complaint.as_str()), (0, ""));
    std::fs::read_to_string(path).expect("the report was written")
}

#[test]
fn a_report_has_every_line_and_plot_in_one_file() {
    let lines =
        [line("b=1,h=2,s=64,d=8", "x", 1.0), line("b=1,h=2,s=128,d=8", "x", 2.0), line("matmul <m>&\"n\"", "y", 3.0)];
    let html = report("report.html", &[&file("lines", &lines)]);
    assert_eq!(html.matches("<tr><td data-value=").count(), 3);
    assert_eq!(html.matches("role=\"img\"").count(), 4);
    assert!(html.contains("matmul &#60;m&#62;&#38;&#34;n&#34;") && !html.contains("<m>"));
    // Nothing is fetched: the only addresses are names of formats.
    for part in ["http:", "https:", "src=", "<link", "@import", "url("] {
        assert!(!html.contains(part), "{part}");
    }
}

#[test]
fn several_files_stand_side_by_side() {
    let mut other = line("b=1,h=2,s=64,d=8", "z", 4.0);
    other["device"] = "another device".into();
    let [one, two] = [file("one", &[line("b=1,h=2,s=64,d=8", "x", 1.0)]), file("two", &[other])];
    let html = report("report_two.html", &[&one, &two]);
    assert!(html.contains("Attention, 2 side by side") && html.contains("<th scope=\"col\">another device</th>"));
    assert!(html.contains("4.00 ms<small>4.00 ×, z</small>"));
    let html = report("report_peers.html", &[PEERS]);
    assert!(html.contains("meganeura") && html.contains("fastest of 2 processes"));
    let (code, _, complaint) = regard(&["report", "no/such/file", "--out", "nowhere.html"]);
    assert!(code == 2 && complaint.contains("no/such/file"), "{complaint}");
}
