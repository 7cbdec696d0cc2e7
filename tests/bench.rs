//! The command `regard bench` on the CPU backend: what it prints and writes, and what it says of bad use and broken files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PROBLEM: &str = "b=1,h=2,s=33,d=8,causal";

/// The command, whose caches are this test's own.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_regard"));
    command.args(arguments).env("XDG_CACHE_HOME", place("cache")).stdin(Stdio::null());
    command
}

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{name}"))
}

fn bench(arguments: &[&str]) -> Output {
    command(&[&["bench", "--device", "cpu", "--budget", "0"], arguments].concat()).output().unwrap()
}

/// Exit code, standard output, standard error.
fn parts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn good(arguments: &[&str]) -> String {
    let (code, printed, complaint) = parts(&bench(arguments));
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "{printed}");
    printed
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn refused(arguments: &[&str], expected: &[&str]) {
    let (code, printed, complaint) = parts(&bench(arguments));
    assert_eq!((code, printed.as_str()), (Some(2), ""), "{arguments:?}: {complaint}");
    for part in expected {
        assert!(complaint.contains(part), "{arguments:?}: `{part}` is not in {complaint}");
    }
}

#[test]
fn a_line_says_how_it_was_measured() {
    let printed = lines(&good(&["--problem", PROBLEM, "--runs", "7", "--json"]));
    let [line] = &printed[..] else { panic!("{printed:?}") };
    assert_eq!((&line["runs"], &line["cache"], &line["clock"]), (&7.into(), &"cold".into(), &"host clock".into()));
    assert_eq!(line["samples_ms"].as_array().unwrap().len(), 7);
    assert!(line["threads"].as_u64().unwrap() > 0 && line["path"] == "attention_native");
    assert!(line["bound_share"].as_f64().unwrap() > 0.0 && line["max_ms"].as_f64() >= line["median_ms"].as_f64());
    assert!(line["warnings"].to_string().contains("fewer than 10 runs"), "{line}");
    let warm = lines(&good(&["--problem", PROBLEM, "--warm", "--json"]));
    assert_eq!(warm[0]["cache"], "warm");
}

#[test]
fn two_ways_have_a_ratio() {
    let compare = ["--problem", PROBLEM, "--compare", "fused,unfused", "--runs", "30"];
    let printed = lines(&good(&[&compare[..], &["--json"]].concat()));
    let [first, second] = &printed[..] else { panic!("{printed:?}") };
    assert!(first.get("ratio").is_none() && first["problem"].as_str().unwrap().ends_with("strategy=fused"));
    let [ratio, low, high] = ["ratio", "ratio_low", "ratio_high"].map(|key| second[key].as_f64().unwrap());
    assert!(low <= ratio && ratio <= high && second["versus"] == first["path"], "{second}");
    let table = good(&compare);
    assert!(table.contains("× as long as attention_native, 95 % between"), "{table}");
    refused(&["--problem", PROBLEM, "--compare", "fused,fast"], &["no technique `fast`", "split"]);
    refused(&["--problem", PROBLEM, "--compare", "fused"], &["not two different ways"]);
    refused(&["--suite", "layer", "--compare", "fused,unfused"], &["about attention problems"]);
}

#[test]
fn suites_of_ones_own() {
    let path = place("suite.toml");
    let path = path.to_str().unwrap();
    fs::write(path, "name = \"mine\"\n[[sweep]]\nb = 1\nh = 2\ns = [8, 9]\nd = 8\ncausal = [true, false]\n").unwrap();
    let printed = lines(&good(&["--suite", path, "--json"]));
    let problems: Vec<_> = printed.iter().map(|line| line["problem"].as_str().unwrap()).collect();
    assert_eq!(problems, ["b=1,h=2,s=8,d=8,causal", "b=1,h=2,s=9,d=8,causal", "b=1,h=2,s=8,d=8", "b=1,h=2,s=9,d=8"]);
    assert!(printed.iter().all(|line| line["suite"] == "mine"));
    for (text, expected) in [
        ("problems = [\"b=1,h=8,d=4\"]", "line 1: problem: `s=` is missing"),
        ("\n\nproblems = 3", "line 3"),
        ("[[sweep]]\nb = 1\nk = 2", "unknown key `k`"),
    ] {
        fs::write(path, text).unwrap();
        refused(&["--suite", path], &[path, expected]);
    }
    refused(&["--suite", "/nowhere/suite.toml"], &["/nowhere/suite.toml: No such file"]);
    refused(&["--suite", "fastest"], &["`fastest` is not one of quick, fa, triton"]);
}

#[test]
fn commas_colours_and_traces() {
    let path = place("trace.json");
    let printed =
        good(&["--problem", &format!("{PROBLEM},strategy=unfused"), "--csv", "--profile", path.to_str().unwrap()]);
    let rows: Vec<_> = printed.lines().collect();
    assert!(rows.len() == 2 && rows[0].starts_with("date,version,commit,suite,problem,") && !printed.contains('\x1b'));
    let trace: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let steps = trace.as_array().unwrap().iter().filter(|event| event["ph"] == "X").count();
    assert!(steps > 1, "{trace}");
    assert!(!good(&["--problem", PROBLEM]).contains('\x1b'), "nobody asked for colours");
}

#[test]
fn what_cannot_be_written_is_said() {
    refused(&["--problem", PROBLEM, "--out", "/nowhere/lines.jsonl"], &["/nowhere/lines.jsonl: No such file"]);
    refused(&["--problem", PROBLEM, "--profile", "/nowhere/trace.json"], &["/nowhere/trace.json: No such file"]);
    let (code, _, complaint) = parts(&command(&["bench", "--budget=-1"]).output().unwrap());
    assert!(code == Some(2) && complaint.contains("`-1` is not a number of seconds"), "{complaint}");
    refused(&["--problem", PROBLEM, "--runs", "0"], &["--runs"]);
    if !Path::new("/dev/full").exists() {
        return;
    }
    let (code, _, complaint) = parts(&bench(&["--problem", PROBLEM, "--out", "/dev/full"]));
    assert!(code == Some(1) && complaint.contains("/dev/full: No space left on device"), "{complaint}");
    for form in [&[][..], &["--json"], &["--csv"]] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let arguments = [&["bench", "--device", "cpu", "--budget", "0", "--problem", PROBLEM][..], form].concat();
        let output = command(&arguments).stdout(full).output().unwrap();
        let (code, _, complaint) = parts(&output);
        assert!(code == Some(1) && complaint.contains("No space left on device"), "{complaint}");
    }
}

/// A line that is lost because its file cannot hold it is an error that names the file, whatever the file is for.
#[test]
fn full_disks_and_folders_that_cannot_be_written_are_said_before_anything_runs() {
    for option in ["--out", "--report", "--profile"] {
        let started = Instant::now();
        let mut arguments = vec!["--runs", "1000000", "--problem", "b=8,h=8,s=512,d=64"];
        arguments.extend([option, "/nowhere/file"]);
        refused(&arguments, &["error: /nowhere/file: No such file or directory"]);
        assert!(started.elapsed() < Duration::from_secs(30), "{option} was not tried first");
        if Path::new("/dev/full").exists() {
            let (code, _, complaint) = parts(&bench(&["--problem", PROBLEM, option, "/dev/full"]));
            assert!(code == Some(1), "{option}: {complaint}");
            assert_eq!(complaint, "error: /dev/full: No space left on device (os error 28)\n", "{option}");
        }
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let path = place("same.json");
    let path = path.to_str().unwrap();
    let both = format!("--out and --report are both {path}");
    refused(&["--problem", PROBLEM, "--out", path, "--report", path], &[&both]);
    refused(&["--problem", PROBLEM, "--report", path, "--profile", path], &["--report and --profile are both"]);
    refused(&["--problem", PROBLEM, "--json", "--csv"], &["cannot be used with"]);
    refused(&["--problem", PROBLEM, "--compare", "fused,unfused", "--strategy", "fused"], &["cannot be used with"]);
    refused(&["--suite", "latency"], &["suite: latency", "--budget says nothing about it"]);
    let latency = |option: &[&str]| {
        let arguments = [&["bench", "--device", "cpu", "--suite", "latency"], option].concat();
        parts(&command(&arguments).output().unwrap())
    };
    for (option, expected) in [(&["--warm"][..], "--warm says nothing"), (&["--csv"], "--csv says")] {
        let (code, printed, complaint) = latency(option);
        assert_eq!((code, printed.as_str()), (Some(2), ""), "{complaint}");
        assert!(complaint.starts_with("error: suite: latency") && complaint.contains(expected), "{complaint}");
    }
}

#[test]
fn first_results_have_a_page_of_their_own() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("latency.html");
    let arguments = ["bench", "--device", "cpu", "--suite", "latency", "--report", path.to_str().unwrap()];
    let (code, printed, complaint) = parts(&command(&arguments).output().unwrap());
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "{printed}");
    let page = fs::read_to_string(path).unwrap();
    assert!(
        printed.contains("first result") && page.contains("<h2 id=\"latency-title\">First results</h2>"),
        "{printed}"
    );
}

/// There is nothing to time in a problem without elements.
#[test]
fn sizes_of_zero_are_refused() {
    for (problem, size) in [("b=0,h=1,s=4,d=8", "b=0"), ("b=1,h=1,s=0,d=8", "s=0"), ("b=1,h=1,sq=4,skv=0,d=8", "skv=0")]
    {
        refused(&["--problem", problem], &["invalid value", &format!("`{size}` is not a whole number of 1 or more")]);
    }
    let path = place("zero.toml");
    fs::write(&path, "[[sweep]]\nb = 1\nh = 2\ns = [8, 0]\nd = 8\n").unwrap();
    refused(&["--suite", path.to_str().unwrap()], &["zero.toml: line 1: problem: `s=0` is not a whole number"]);
}

/// `regard bench | head -1`.
#[cfg(unix)]
#[test]
fn a_reader_who_leaves_early_is_no_error() {
    for form in ["--json", "--csv"] {
        let arguments =
            [&["bench", "--device", "cpu", "--budget", "0.1", form][..], &["--problem", PROBLEM].repeat(30)];
        let mut child = command(&arguments.concat()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut first).unwrap();
        let (code, _, complaint) = parts(&child.wait_with_output().unwrap());
        assert_eq!((code, complaint.as_str()), (Some(0), ""), "{form}");
        assert!(!first.is_empty());
    }
}

/// What was measured before Ctrl-C is in the file, whole.
#[cfg(unix)]
#[test]
fn interrupted_runs_leave_their_lines() {
    let path = place("interrupted.jsonl");
    let _ = fs::remove_file(&path);
    let mut arguments = vec!["bench", "--device", "cpu", "--budget", "0.3", "--out", path.to_str().unwrap()];
    arguments.extend(["--problem", PROBLEM].repeat(200));
    let mut child = command(&arguments).stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(&path).unwrap_or_default().lines().count() < 2 {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "no line came");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(2), "{status}");
    let text = fs::read_to_string(&path).unwrap();
    let lines = lines(&text);
    assert!((2..200).contains(&lines.len()) && text.ends_with('\n'));
    assert!(lines.iter().all(|line| line["median_ms"].as_f64().unwrap() > 0.0));
}

#[test]
fn peaks_completions_and_pages() {
    let run = |arguments: &[&str]| {
        let (code, printed, complaint) = parts(&command(arguments).output().unwrap());
        assert_eq!(code, Some(0), "{complaint}");
        printed
    };
    let peaks: Value = serde_json::from_str(&run(&["info", "--roofline", "--device", "cpu", "--json"])).unwrap();
    assert!(peaks["flops_f32"].as_f64().unwrap() > 1e8 && peaks["bytes_copied"].as_f64().unwrap() > 1e8, "{peaks}");
    assert!(run(&["completions", "bash"]).contains("--compare"));
    assert!(run(&["man"]).contains(".SH REGARD BENCH"));
    assert_eq!(parts(&command(&["completions", "tcl"]).output().unwrap()).0, Some(2));
}
