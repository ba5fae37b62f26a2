//! Build records: stock's `history` commands on our server, and records that outlive it.

use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use testkit::{Lab, Tool};

use crate::workshop::{Remote, context_with_busybox, text, wait_until};

/// A context with busybox and that Dockerfile, whose first two lines are always the same.
fn context(lab: &Lab, name: &str, lines: &str) -> String {
    let dockerfile = format!("FROM scratch\nCOPY busybox /bin/sh\n{lines}\n");
    context_with_busybox(lab, name, &[("Dockerfile", &dockerfile)])
}

/// The records as `history ls` lists them, newest first.
fn listed(stock: &Tool) -> Vec<Value> {
    let lines = stock.ok(&["history", "ls", "--format", "json"]).stdout;
    let records = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    records.collect()
}

fn statuses(records: &[Value]) -> Vec<&str> {
    let statuses = records.iter().map(|record| record["status"].as_str());
    statuses.map(Option::unwrap).collect()
}

/// The part of a record's `ref` that commands take.
fn short(record: &Value) -> String {
    let whole = record["ref"].as_str().unwrap();
    whole.rsplit('/').next().unwrap().to_owned()
}

#[test]
fn stock_lists_shows_exports_and_removes_our_records() {
    let remote = Remote::open();
    let (lab, stock) = (&remote.lab, &remote.stock);
    let good = context(lab, "good", "ARG who\nRUN echo hello $who");
    let archive = format!("type=oci,dest={}", text(&lab.directory().join("good.tar")));
    stock.ok(&[
        "build",
        "--build-arg=who=cooper",
        "--output",
        &archive,
        &good,
    ]);
    let bad = context(lab, "bad", "RUN echo oh; exit 7");
    stock.fails(&["build", &bad]);

    let records = listed(stock);
    assert_eq!(statuses(&records), ["Error", "Completed"]);
    let (failed, done) = (short(&records[0]), short(&records[1]));
    let filtered = stock
        .ok(&[
            "history",
            "ls",
            "--no-trunc",
            "--format={{.Ref}}",
            "--filter",
            "status=error",
        ])
        .stdout;
    assert!(
        filtered.contains(&failed) && !filtered.contains(&done),
        "{filtered}"
    );

    let logs = stock.ok(&["history", "logs", &done]).stderr;
    assert!(logs.contains("hello cooper"), "{logs}");

    let shown = stock
        .ok(&["history", "inspect", "--format", "json", &done])
        .stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["Status"], "completed");
    assert_eq!(shown["BuildArgs"][0]["Value"], "cooper");
    assert_eq!(shown["NumCompletedSteps"], shown["NumTotalSteps"]);
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    assert_eq!(shown["Attachments"][0]["Type"], manifest, "{shown}");
    let attached = stock.ok(&["history", "inspect", "attachment", "--type=manifest", &done]);
    let attached: Value = serde_json::from_str(&attached.stdout).unwrap();
    assert_eq!(attached["mediaType"], manifest);

    let shown = stock.ok(&["history", "inspect", &failed]).stdout;
    for expected in [
        "exit code: 7",
        "Dockerfile:3",
        "> [3/3] RUN echo oh; exit 7",
        "oh",
    ] {
        let expected = expected.trim_start_matches("> [3/3] ");
        assert!(shown.contains(expected), "{expected}\n{shown}");
    }

    for record in [&done, &failed] {
        let bundle = lab.directory().join("bundle");
        let output = format!("--output={}", text(&bundle));
        stock.ok(&["history", "export", "--finalize", &output, record]);
        // The client reads every span of the trace on its way.
        let unpacked = std::process::Command::new("tar")
            .args(["-xzOf", &text(&bundle)])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&unpacked.stdout);
        assert!(
            text.contains("application/vnd.buildkit.otlp.json.v0"),
            "{text}"
        );
        assert!(text.contains("moby.buildkit.v1.Control/Solve"), "{text}");
    }

    stock.ok(&["history", "rm", &failed]);
    let left: Vec<_> = listed(stock).iter().map(short).collect();
    assert_eq!(left, [done]);
    let again = stock.fails(&["history", "rm", &failed]).stderr;
    assert!(again.contains(&failed), "{again}");
    stock.ok(&["history", "rm", "--all"]);
    assert!(listed(stock).is_empty());
}

#[test]
fn records_outlive_a_killed_server_and_what_it_was_building_is_a_failed_record() {
    let Remote {
        lab, server, stock, ..
    } = Remote::open();
    let done = context(&lab, "done", "RUN echo kept");
    stock.ok(&["build", &done]);
    let endless = context(&lab, "endless", "RUN sleep 1000");
    let mut client = stock
        .command(&["build", &endless])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("a running build", || {
        listed(&stock)[0]["status"] == "Running"
    });
    server.signal(Signal::KILL);
    server.wait();
    client.wait().unwrap();

    let _restarted = crate::workshop::server(&lab).start();
    let records = listed(&stock);
    assert_eq!(statuses(&records), ["Error", "Completed"]);
    let shown = stock
        .ok(&["history", "inspect", &short(&records[0])])
        .stdout;
    assert!(shown.contains("its server ended before it did"), "{shown}");
    let logs = stock.ok(&["history", "logs", &short(&records[1])]).stderr;
    assert!(logs.contains("kept"), "{logs}");
}
