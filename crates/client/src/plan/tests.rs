use super::*;
use crate::export::Target;
use crate::export::prepare_exports;
use crate::request::BuildFlags;

fn container() -> NodeFacts {
    NodeFacts {
        builder: "b".into(),
        name: "b0".into(),
        driver: "docker-container".into(),
        is_moby: false,
        oci_exporter: true,
        docker_exporter: true,
        cache_export: true,
        multi_platform: true,
        direct_push: true,
        prefer_image_digest: false,
        default_load: false,
        attestations: true,
        multiple_outputs: true,
        proxy_arguments: BTreeMap::new(),
        machine_id: "m".into(),
        host_gateway: Err("unknown".into()),
        engine_takes_oci: false,
        engine_platform: Some(Platform::new("linux", "amd64", "")),
    }
}

fn moby() -> NodeFacts {
    NodeFacts {
        driver: "docker".into(),
        is_moby: true,
        oci_exporter: false,
        docker_exporter: false,
        cache_export: false,
        multi_platform: false,
        direct_push: false,
        ..container()
    }
}

fn flags() -> BuildFlags {
    BuildFlags {
        context: "https://h/x.git".into(),
        ..BuildFlags::default()
    }
}

fn plan_in(env: &Environment, flags: BuildFlags, facts: &NodeFacts) -> Result<SolvePlan, String> {
    let request = BuildRequest::from_flags(&flags, env).map_err(|e| e.to_string())?;
    let exports =
        prepare_exports(&request.exports, env, false, false).map_err(|e| e.to_string())?;
    let context = PlanContext {
        request: &request,
        inputs: &Inputs::load(&request, env, &b""[..]).map_err(|e| e.to_string())?,
        git: &GitInfo::default(),
        exports: &exports,
        env,
        several_nodes: false,
    };
    SolvePlan::new(context, facts, &request.platforms).map_err(|e| e.to_string())
}

fn plan(flags: BuildFlags, facts: &NodeFacts) -> Result<SolvePlan, String> {
    plan_in(&Environment::default(), flags, facts)
}

fn list(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

#[test]
fn flags_become_attributes_of_the_frontend() {
    let facts = NodeFacts {
        proxy_arguments: [
            ("HTTP_PROXY".to_owned(), "p".to_owned()),
            ("no_proxy".into(), "q".into()),
        ]
        .into(),
        ..container()
    };
    let plan = plan(
        BuildFlags {
            build_args: list(&["A=1", "NO_PROXY=x"]),
            labels: list(&["l=2"]),
            target: "t".into(),
            no_cache_filter: list(&["s", "r"]),
            network: "host".into(),
            shm_size: "64m".into(),
            ulimits: list(&["nofile=1:2"]),
            platforms: list(&["linux/amd64,linux/arm64"]),
            cache_from: list(&["type=registry,ref=c"]),
            pull: true,
            ..flags()
        },
        &facts,
    )
    .unwrap();
    let expected = [
        ("attest:provenance", "mode=min,inline-only=true"),
        ("build-arg:A", "1"),
        ("build-arg:HTTP_PROXY", "p"),
        ("build-arg:NO_PROXY", "x"),
        (
            "cache-imports",
            r#"[{"Type":"registry","Attrs":{"ref":"c"}}]"#,
        ),
        ("context", "https://h/x.git"),
        ("filename", "Dockerfile"),
        ("force-network-mode", "host"),
        ("image-resolve-mode", "pull"),
        ("label:l", "2"),
        ("no-cache", "s,r"),
        ("platform", "linux/amd64,linux/arm64"),
        ("shm-size", "67108864"),
        ("target", "t"),
        ("ulimit", "nofile=1:2"),
    ];
    let attributes: Vec<(&str, &str)> = plan
        .attributes
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(attributes, expected);
    assert_eq!(plan.entitlements, ["network.host"]);
    let message = plan.to_proto("session");
    assert_eq!(message.frontend, "dockerfile.v0");
    assert_eq!(message.cache.unwrap().imports[0].r#type, "registry");
}

#[test]
fn the_default_provenance_can_be_switched_off() {
    let has = |env: &Environment, flags| {
        let plan = plan_in(env, flags, &container()).unwrap();
        plan.attributes.get("attest:provenance").cloned()
    };
    let none = Environment::default();
    let off = BuildFlags {
        provenance: "false".into(),
        ..flags()
    };
    assert_eq!(has(&none, off), None);
    let max = BuildFlags {
        provenance: "mode=max".into(),
        ..flags()
    };
    assert_eq!(has(&none, max).as_deref(), Some("type=provenance,mode=max"));
    let env = Environment::new([("BUILDX_NO_DEFAULT_ATTESTATIONS", "1")]);
    assert_eq!(has(&env, flags()), None);
    let old = plan(
        flags(),
        &NodeFacts {
            attestations: false,
            ..container()
        },
    )
    .unwrap();
    assert!(!old.attributes.contains_key("attest:provenance"));
}

#[test]
fn the_engine_takes_the_image_its_own_way() {
    let load = BuildFlags {
        load: true,
        tags: list(&["a"]),
        ..flags()
    };
    let export = |facts: &NodeFacts| plan(load.clone(), facts).unwrap().exports.remove(0);
    let classic = export(&container());
    assert_eq!(
        (&*classic.kind, &classic.target),
        ("docker", &Target::Engine(None))
    );
    assert_eq!(classic.attributes["name"], "a");
    let containerd = export(&NodeFacts {
        engine_takes_oci: true,
        ..container()
    });
    assert_eq!(containerd.kind, "oci");
    assert_eq!(containerd.attributes["prefer-image-digest"], "true");
    let inside = export(&moby());
    assert_eq!((&*inside.kind, &inside.target), ("moby", &Target::Server));
    assert_eq!(plan(flags(), &moby()).unwrap().exports[0].kind, "moby");
}

#[test]
fn an_engine_with_one_platform_an_image_gets_its_own() {
    let load = |outputs: &[&str]| BuildFlags {
        load: true,
        outputs: list(outputs),
        platforms: list(&["linux/arm64,linux/amd64"]),
        ..flags()
    };
    let loaded = plan(load(&[]), &container()).unwrap();
    assert_eq!(loaded.attributes["platform"], "linux/amd64");
    assert_eq!(loaded.notes.len(), 1);
    let error = plan(load(&["type=image"]), &container()).unwrap_err();
    assert_eq!(
        error,
        "docker exporter does not currently support exporting manifest lists"
    );
}

#[test]
fn what_a_driver_cannot_do_is_refused_in_the_known_words() {
    let docs =
        "Switch to a different driver, or turn on the containerd image store, and try again.";
    for (flags, words) in [
        (
            BuildFlags {
                outputs: list(&["type=oci,dest=x"]),
                ..flags()
            },
            "OCI exporter is not supported for the docker driver.",
        ),
        (
            BuildFlags {
                platforms: list(&["linux/amd64", "linux/arm64"]),
                ..flags()
            },
            "Multi-platform build is not supported for the docker driver.",
        ),
        (
            BuildFlags {
                cache_to: list(&["type=registry,ref=a"]),
                ..flags()
            },
            "Cache export is not supported for the docker driver.",
        ),
        (
            BuildFlags {
                sbom: "true".into(),
                ..flags()
            },
            "Attestation is not supported for the docker driver.",
        ),
    ] {
        let error = plan(flags, &moby()).unwrap_err();
        assert!(
            error.starts_with(&format!("{words}\n{docs}\nLearn more at ")),
            "{error}"
        );
    }
    let push = BuildFlags {
        push: true,
        ..flags()
    };
    assert_eq!(
        plan(push, &container()).unwrap_err(),
        "tag is needed when pushing to registry"
    );
    let tag = BuildFlags {
        load: true,
        tags: list(&["FOO"]),
        ..flags()
    };
    assert_eq!(
        plan(tag, &container()).unwrap_err(),
        "invalid tag \"FOO\": repository name must be lowercase"
    );
}

#[test]
fn a_build_without_output_is_warned_about() {
    let none = Environment::default();
    let warning = |flags: &BuildFlags, default_load, env: &Environment| {
        let request = BuildRequest::from_flags(flags, env).unwrap();
        no_output_warning(&request, "docker-container", default_load, env)
    };
    assert_eq!(
        warning(&flags(), false, &none).unwrap(),
        "No output specified with docker-container driver. Build result will only remain in the build cache. To push result image into registry use --push or to load image into docker use --load"
    );
    assert_eq!(warning(&flags(), true, &none), None);
    let env = Environment::new([("BUILDX_NO_DEFAULT_LOAD", "1")]);
    assert_eq!(warning(&flags(), false, &env), None);
    let push = BuildFlags {
        push: true,
        tags: list(&["a"]),
        ..flags()
    };
    assert_eq!(warning(&push, false, &none), None);
}
