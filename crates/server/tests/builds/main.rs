//! Whole builds against a server in this process. Needs root, busybox-static, and a kernel with
//! overlayfs and namespaces.
//!
//! This program is also the init program of the steps it runs, so it has a main function of its own:
//! arguments are names of tests, or parts of them.
#![expect(clippy::print_stdout, reason = "a test harness tells what it does")]

mod bench;
mod cases;
mod containers;
mod frontends;
mod observed;
mod policies;
mod sources;
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
    sources:
    only_changed_files_of_a_folder_travel,
    a_folder_is_taken_in_part,
    what_files_are_travels_without_what_is_in_them,
    a_blob_of_a_clients_layout_is_a_file;
    observed:
    traces_reach_a_collector_over_grpc_as_part_of_the_clients_trace,
    traces_reach_a_collector_over_http_and_clients_send_theirs_through_the_server,
    a_collector_that_is_away_stops_no_build,
    metrics_count_what_builds_did;
    state:
    disk_usage_adds_up_to_what_du_says,
    a_cap_holds_while_a_build_runs_and_spares_what_it_uses,
    a_cap_counts_what_a_step_is_writing,
    old_cache_is_removed_after_builds,
    prune_removes_what_its_filters_mean,
    what_a_step_prints_is_clipped,
    sixty_four_builds_run_what_they_share_once,
    at_most_so_many_steps_run_at_once,
    differences_and_merges_of_unrelated_states_are_made;
    frontends:
    a_frontend_image_sees_its_request,
    a_frontend_that_crashes_is_reported_with_its_log,
    a_frontend_that_writes_garbage_is_ended,
    a_frontend_that_returns_nothing_is_an_error,
    a_frontend_that_hangs_is_killed_when_the_build_is_cancelled,
    frontends_that_are_not_allowed_are_not_run,
    a_definition_in_a_file_is_a_part_of_the_build,
    what_a_source_stands_for_can_be_asked;
    policies:
    a_policy_of_the_request_decides_about_its_sources,
    a_policy_holds_for_definitions_that_a_build_finds,
    policies_of_calls_decide_about_what_is_asked_and_solved;
    containers:
    processes_of_a_container_share_it,
    a_terminal_is_typed_into_resized_and_signalled,
    mounts_of_a_container_are_those_asked_for,
    what_cannot_run_is_said_and_the_container_goes_on,
    the_files_of_a_failed_step_can_be_looked_into,
    a_cancelled_build_takes_its_containers_along;
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
            let limit = std::time::Duration::from_secs(300);
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
