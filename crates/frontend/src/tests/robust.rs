//! Whatever is written in a Dockerfile, the frontend gives an answer.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::host::MemoryHost;
use crate::{BuildOptions, build};

/// Pieces that Dockerfiles are made of, joined at random.
const PIECES: &[&str] = &[
    "FROM busybox",
    "FROM scratch AS a",
    "FROM a",
    "COPY",
    "ADD",
    "RUN",
    "ENV",
    "ARG X=1",
    "ONBUILD",
    "WORKDIR",
    "LABEL",
    "USER",
    "EXPOSE",
    "CMD",
    "ENTRYPOINT",
    "HEALTHCHECK",
    "SHELL",
    "VOLUME",
    "STOPSIGNAL",
    "MAINTAINER",
    " --from=a",
    " --from=0",
    " --mount=type=cache,target=/c",
    " --link",
    " --chown=$X",
    " --parents",
    " --platform=$TARGETPLATFORM",
    " <<EOF",
    "\nEOF",
    "\n",
    " \\\n",
    " a",
    " /b",
    " .",
    "=",
    " $X",
    "${X:-y}",
    "${X",
    "\"",
    "'",
    "\\",
    "# c",
    "[\"a\"]",
    "[",
    "é",
    "\t",
    "-",
    " https://h/x.git",
    " https://h/f",
    "\0",
    " 80-90/tcp",
    " CMD",
    " NONE",
];

fn lower(text: &str, attrs: &[(&str, &str)]) {
    let attrs: BTreeMap<String, String> = attrs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let host = MemoryHost::with_dockerfile(text);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let options = BuildOptions::from_attrs(&attrs).unwrap();
    // Whether it is right or wrong does not matter here.
    drop(runtime.block_on(build(&host, options)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn pieces_in_any_order_never_panic(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40)
    ) {
        let text = format!("FROM busybox\n{}", pieces.concat());
        lower(&text, &[]);
        lower(&text, &[("requestid", "frontend.lint")]);
    }
}

#[test]
fn long_chains_of_stages_do_not_exhaust_the_stack() {
    let mut text = String::from("FROM busybox AS s0\n");
    for number in 1..3000 {
        text.push_str(&format!(
            "FROM s{} AS s{number}\nCOPY --from=s{} a a\n",
            number - 1,
            number - 1
        ));
    }
    lower(&text, &[]);
}

#[test]
fn a_build_can_be_moved_to_another_thread() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let host = MemoryHost::with_dockerfile("FROM scratch\n");
    drop(is_send(build(&host, BuildOptions::default())));
}
