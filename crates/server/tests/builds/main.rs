//! Whole builds against a server in this process. Needs root, busybox-static, and a kernel with
//! overlayfs and namespaces.
//!
//! This program is also the init program of the steps it runs, so it has a main function of its own:
//! arguments are names of tests, or parts of them.
#![expect(clippy::print_stdout, reason = "a test harness tells what it does")]

mod bench;
mod cases;
mod state;

use std::pin::Pin;

type Case = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! cases {
    ($($module:ident: $($name:ident),* $(,)?;)*) => {
        &[$($((stringify!($name), || Box::pin($module::$name()))),*),*]
    };
}

const CASES: &[Case] = cases![
    cases:
    a_dockerfile_becomes_files_and_the_second_time_everything_is_cached,
    only_what_changed_runs_again,
    a_failing_step_is_reported_with_its_place_in_the_dockerfile,
    a_missing_file_is_reported_with_its_place_in_the_dockerfile,
    archives_hold_an_image,
    secrets_and_cache_mounts_are_seen_by_steps_and_not_kept,
    equal_steps_of_two_builds_run_once,
    a_cancelled_build_leaves_no_process_and_no_mount,
    what_is_cached_outlives_the_server,
    everything_can_be_pruned_and_built_again,
    a_client_drives_a_build_through_the_gateway,
    entitlements_must_be_granted_by_both,
    a_root_has_one_server,
    finished_builds_are_remembered;
    state:
    disk_usage_adds_up_to_what_du_says,
    a_cap_holds_while_a_build_runs_and_spares_what_it_uses,
    old_cache_is_removed_after_builds,
    prune_removes_what_its_filters_mean,
    sixty_four_builds_run_what_they_share_once,
    at_most_so_many_steps_run_at_once,
    differences_and_merges_of_unrelated_states_are_made;
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args
        .first()
        .is_some_and(|arg| arg == executor::INIT_ARGUMENT)
    {
        executor::init_main();
    }
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen = CASES
        .iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str())));
    if args.iter().any(|arg| arg == "--list") {
        for (name, _) in chosen {
            println!("{name}: test");
        }
        return;
    }
    let mut failed = Vec::new();
    for (name, case) in chosen {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let limit = std::time::Duration::from_secs(120);
            runtime.block_on(async {
                let finished = tokio::time::timeout(limit, case()).await;
                finished.expect("the test ends in time");
            });
        }));
        println!(
            "test {name} ... {}",
            if outcome.is_ok() { "ok" } else { "FAILED" }
        );
        if outcome.is_err() {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        println!("failed: {failed:?}");
        std::process::exit(101);
    }
}
