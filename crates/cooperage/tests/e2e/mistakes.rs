//! Mistakes in commands are refused with stock's words and exit codes. Ours may add hints.

use testkit::{Output, Tool};

use crate::workshop::{Workshop, executable};

/// What stands for the context's path in the cases.
const CONTEXT: &str = "CONTEXT";

/// Arguments after `build`, a case a line, words separated by blanks.
const CASES: &str = "
--progress=plain -f CONTEXT/Missing CONTEXT
--progress=plain -f /nowhere/Dockerfile CONTEXT
--progress=plain -f CONTEXT/Empty CONTEXT
--progress=plain -f CONTEXT/Unknown CONTEXT
--progress=plain -f CONTEXT/Flag CONTEXT
--progress=plain --target=nobody CONTEXT
--progress=plain --build-arg=A --build-arg=A=1 --target=nobody CONTEXT
--progress=plain --secret=id=absent -f CONTEXT/Secret CONTEXT
--progress=plain -f CONTEXT/Secret CONTEXT
--progress=plain -f CONTEXT/Copy CONTEXT
/nowhere

CONTEXT CONTEXT
CONTEXT/Dockerfile
--bogus CONTEXT
-Z CONTEXT
--tag
--no-cache=perhaps CONTEXT
--platform=linux/bogus/v1/x CONTEXT
--platform=/ CONTEXT
--platform=bogus CONTEXT
-o type=bogus CONTEXT
-o dest=x CONTEXT
-o type=local CONTEXT
-o type CONTEXT
-o type=local,dest CONTEXT
-o type=image,push=perhaps,name=a CONTEXT
--push CONTEXT
--load --push CONTEXT
--load -o type=local,dest=CONTEXT/out CONTEXT
-o - -o - CONTEXT
-t UPPER CONTEXT
-t a:b:c CONTEXT
--build-arg==x CONTEXT
--build-arg=A=\"x CONTEXT
--secret=id=x,src=/nowhere/secret CONTEXT
--secret=type=bogus,id=x CONTEXT
--secret=bogus CONTEXT
--secret=id=x,bogus=1 CONTEXT
--ssh=a=/nowhere/key CONTEXT
--shm-size=abc CONTEXT
--shm-size=12x CONTEXT
--add-host=bad CONTEXT
--add-host=a:notanip CONTEXT
--ulimit=bad CONTEXT
--ulimit=nofile=2:1 CONTEXT
--ulimit=bogus=1 CONTEXT
--ulimit=nofile=x CONTEXT
--build-context=bad CONTEXT
--build-context=a=/nowhere CONTEXT
--build-context=a=CONTEXT/Dockerfile CONTEXT
--build-context=a=oci-layout://CONTEXT/layout CONTEXT
--build-context=UPPER=CONTEXT CONTEXT
--allow=bogus CONTEXT
--annotation=bad CONTEXT
--annotation=bogus:a=b CONTEXT
--attest=bogus CONTEXT
--cache-from=type=local CONTEXT
--cache-from=type=registry CONTEXT
--cache-to=type=local CONTEXT
--cache-to=type=inline,a CONTEXT
--call=bogus CONTEXT
--progress=bogus CONTEXT
--quiet --progress=plain CONTEXT
--network=bogus CONTEXT
--no-cache --no-cache-filter=a CONTEXT
--builder=nobody CONTEXT
--provenance=bogus CONTEXT
--sbom=bogus CONTEXT
--label=a --iidfile=CONTEXT/absent/id CONTEXT
--metadata-file=CONTEXT/absent/md CONTEXT
-f - -
";

/// Whole commands, as [`CASES`].
const COMMANDS: &str = "
use nosuch
use --default nosuch
use a/b
create --platform bogus
create --platform a/b/c/d
create --platform linux/
create --platform ,
create --platform linux/amd64,bogus
create --name a/b
create --name default
create --driver bogus
create --append
create --append --name nosuch
create --leave
create --leave --name nosuch --node n
create --buildkitd-config /nowhere
create --buildkitd-flags \"
create --name x --driver-opt bogus=1
create --name x --driver-opt memory=1x
create --name x --driver-opt memory=1Xyz
create --name x --driver-opt memory=1XYZW
inspect nosuch
inspect a/b
stop nosuch
rm nosuch
rm --all-inactive nosuch
du --builder nosuch
du --builder nosuch --filter foo
du --filter foo
du --filter until=x
du --verbose --format json
prune --filter foo
prune --force --filter until=x
dial-stdio --builder nosuch
";

/// The end of what was said, from the first line that is no progress; and the code.
fn complaint(output: &Output) -> (i32, String) {
    let is_progress = |line: &&str| {
        line.starts_with('#')
            || line.starts_with("WARNING: No output specified")
            || line.starts_with("hint: ")
            || line.trim().is_empty()
    };
    let lines: Vec<&str> = output
        .stderr
        .lines()
        .filter(|line| !is_progress(line))
        // Stock's HTTP/2 server logs this now and then when it closes its session while the other
        // end still greets it; it says nothing about the build.
        .filter(|line| !line.contains("http2: server connection error from localhost"))
        .collect();
    (output.code, lines.join("\n"))
}

#[test]
fn mistakes_are_refused_as_stock_refuses_them() {
    let shop = Workshop::open();
    // Messages contain the name of the program.
    let link = shop.lab.subdirectory("bin").join("docker-buildx");
    std::os::unix::fs::symlink(executable(), &link).unwrap();
    let ours =
        Tool::new(link, &shop.lab.subdirectory("home")).env("DOCKER_HOST", shop.engine.host());
    let stock = shop.stock();
    ours.ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    let context = shop.context(
        "mistakes",
        &[
            ("Dockerfile", "FROM scratch AS base\nCOPY Dockerfile /\n"),
            ("Empty", ""),
            ("layout/oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}"),
            ("Unknown", "FROM scratch\nFRUM x\n"),
            ("Flag", "FROM scratch\nCOPY --bogus Dockerfile /\n"),
            ("Copy", "FROM scratch\nCOPY nothing /\n"),
            (
                "Secret",
                "FROM scratch\nRUN --mount=type=secret,id=absent,required [\"/x\"]\n",
            ),
        ],
    );
    let builds = CASES.trim_start_matches('\n').lines();
    let commands = COMMANDS.trim_start_matches('\n').lines();
    let cases = builds.map(|case| format!("build {case}"));
    let mut differences = String::new();
    for case in cases.chain(commands.map(str::to_owned)) {
        let words: Vec<String> = case
            .split_whitespace()
            .map(|word| word.replace(CONTEXT, &context))
            .collect();
        let run = |tool: &Tool| complaint(&tool.run(&words));
        let (theirs, ours) = (run(&stock), run(&ours));
        if theirs != ours {
            differences += &format!(
                "== {case}\nstock {}: {}\nours  {}: {}\n",
                theirs.0, theirs.1, ours.0, ours.1
            );
        }
    }
    assert!(differences.is_empty(), "\n{differences}");
}
