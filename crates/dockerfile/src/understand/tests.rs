//! Instructions, right and wrong.

use super::*;
use crate::lint::LintConfig;

fn error(text: &str) -> String {
    match Dockerfile::read(text.as_bytes(), &Linter::off()) {
        Ok(file) => panic!("{file:?}"),
        Err(error) => error.to_string(),
    }
}

fn only(text: &str) -> Kind {
    let text = format!("FROM a\n{text}\n");
    let mut file = Dockerfile::read(text.as_bytes(), &Linter::off()).unwrap();
    file.stages.remove(0).instructions.remove(0).kind
}

#[test]
fn wrong_instructions_are_told_as_stock_tells_them() {
    for (line, message) in [
        (
            "COPPY a b",
            "unknown instruction: COPPY (did you mean COPY?)",
        ),
        (
            "COPY --chow=1:1 a b",
            "unknown flag: --chow (did you mean chown?)",
        ),
        (
            "COPY a",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        (
            "COPY a <<EOF\nEOF",
            "COPY cannot accept a heredoc as a destination",
        ),
        ("FROM a b", "FROM requires either one or three arguments"),
        (
            "FROM a AS 1",
            "invalid name for build stage: \"1\", name can't start with a number or contain symbols",
        ),
        ("USER", "USER requires exactly one argument"),
        ("ENV", "ENV requires at least one argument"),
        ("ARG =x", "ARG names can not be blank"),
        (
            "SHELL sh -c",
            "SHELL requires the arguments to be in JSON form",
        ),
        (
            "ONBUILD ONBUILD RUN x",
            "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
        ),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("RUN --network=x y", "invalid network mode \"x\""),
        ("RUN --security=x y", "security \"x\" is not valid"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        (
            "HEALTHCHECK X y",
            "Unknown type \"X\" in HEALTHCHECK (try CMD)",
        ),
        (
            "HEALTHCHECK --interval=1us CMD x",
            "Interval \"interval\" cannot be less than 1ms",
        ),
        (
            "HEALTHCHECK --retries=-1 CMD x",
            "--retries cannot be negative (-1)",
        ),
        (
            "HEALTHCHECK --retries=x CMD x",
            "strconv.ParseInt: parsing \"x\": invalid syntax",
        ),
        (
            "VOLUME [\" \"]",
            "VOLUME specified can not be an empty string",
        ),
        ("MAINTAINER", "MAINTAINER requires exactly one argument"),
    ] {
        let text = format!("FROM a\n{line}\n");
        assert_eq!(
            error(&text),
            format!("dockerfile parse error on line 2: {message}"),
            "{line}"
        );
    }
    assert_eq!(error("RUN x"), "no build stage in current context");
    assert_eq!(
        error("FROM a\nRUN [1]"),
        "when using JSON array syntax, arrays must be comprised of strings only"
    );
}

#[test]
fn instructions_carry_their_parts() {
    let Kind::Healthcheck(check) =
        only("HEALTHCHECK --interval=1m30s --retries=5 CMD wget x || exit 1")
    else {
        panic!()
    };
    assert_eq!(check.test, ["CMD-SHELL", "wget x || exit 1"]);
    assert_eq!((check.interval, check.retries), (90_000_000_000, 5));
    let Kind::Run(run) = only("RUN --mount=type=cache,target=/c --network=none <<-E sh\n\tx\nE")
    else {
        panic!()
    };
    assert_eq!(run.network, RunNetwork::None);
    assert_eq!(run.command.words, ["<<-E sh"]);
    assert_eq!(
        (
            run.command.files[0].data.as_str(),
            run.command.files[0].chomp
        ),
        ("\tx\n", true)
    );
    let Kind::Copy(copy) = only("COPY --link --exclude=a --exclude=b <<\"x\" y /d/\nz\nx") else {
        panic!()
    };
    assert!(copy.link && !copy.files.contents[0].expand);
    assert_eq!((copy.exclude.len(), copy.files.paths.len()), (2, 1));
    assert_eq!(
        only("onbuild  RUN <<E\nx\nE"),
        Kind::Onbuild("RUN <<E\nx\nE".into())
    );
    assert_eq!(
        only("EXPOSE 90 80"),
        Kind::Expose(vec!["80".into(), "90".into()])
    );
}

#[test]
fn triggers_are_single_instructions() {
    assert!(matches!(
        read_trigger("ARG WHO=x").unwrap().kind,
        Kind::Arg(_)
    ));
    assert_eq!(
        read_trigger("RUN a\nRUN b").unwrap_err(),
        "onbuild trigger should be a single expression"
    );
    assert_eq!(
        read_trigger("NOTHING").unwrap_err(),
        "unknown instruction: NOTHING"
    );
}

#[test]
fn style_is_reported() {
    let lint = Linter::new(LintConfig::default());
    let text = b"from a as B\nMAINTAINER x\nRUN a \\\n\n b\n# check=skip=MaintainerDeprecated\nMAINTAINER y\n";
    Dockerfile::read(text, &lint).unwrap();
    let found: Vec<(Rule, u32)> = lint
        .warnings()
        .iter()
        .map(|w| (w.rule, w.lines.first))
        .collect();
    assert_eq!(
        found,
        [
            (Rule::NoEmptyContinuation, 5),
            (Rule::StageNameCasing, 1),
            (Rule::MaintainerDeprecated, 2)
        ]
    );
}
