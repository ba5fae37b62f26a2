//! Devices of steps that files on the server's machine describe (CDI), by our client and by stock's.

use std::path::{Path, PathBuf};

use testkit::{Output, Tool};

use crate::workshop::{Remote, context_with_busybox, text};

/// A device of its own kind: this machine's null under another name, a variable and a folder.
const DISK: &str = "cdiVersion: \"0.6.0\"
kind: vendor.example/disk
containerEdits:
  env: [EVERY_DISK=yes]
devices:
- name: null
  containerEdits:
    env: [\"OWN=its value\"]
    deviceNodes:
    - {path: /dev/own-null, hostPath: /dev/null, permissions: rw, fileMode: 0640, gid: 7}
    - {path: /opt/dev/own-zero, type: c, major: 1, minor: 5, fileMode: 0444}
    mounts:
    - {hostPath: FOLDER, containerPath: /opt/shared, options: [ro, nosuid, bind]}
    additionalGids: [4242]
";
/// Devices that anybody may use, of one class; and one that cannot be given to a step.
const OTHERS: &str = r#"{
  "cdiVersion": "0.6.0", "kind": "vendor.example/others",
  "annotations": {"org.mobyproject.buildkit.device.autoallow": "true",
                  "org.mobyproject.buildkit.device.class": "a-class"},
  "devices": [
    {"name": "one", "containerEdits": {"env": ["ONE=1"]}},
    {"name": "two", "containerEdits": {"env": ["TWO=2"]}},
    {"name": "hooked", "annotations": {"org.mobyproject.buildkit.device.class": "none"},
     "containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/bin/hook"}]}}
  ]
}"#;

struct Machine {
    remote: Remote,
}

impl Machine {
    /// A server with those devices and those flags.
    fn with(flags: &[&str]) -> Machine {
        let remote = Remote::with(|lab, server| {
            let folder = lab.subdirectory("shared");
            std::fs::write(folder.join("note"), "from the machine\n").unwrap();
            let specs = lab.subdirectory("cdi");
            let disk = DISK.replace("name: null", "name: 'null'");
            let disk = disk.replace("FOLDER", &text(&folder));
            std::fs::write(specs.join("disk.yaml"), disk).unwrap();
            std::fs::write(specs.join("others.json"), OTHERS).unwrap();
            let config = lab.directory().join("buildkitd.toml");
            let lines = format!("[cdi]\n  specDirs = [\"{}\"]\n", text(&specs));
            std::fs::write(&config, lines).unwrap();
            server.args(&["--config", &text(&config)]).args(flags)
        });
        Machine { remote }
    }

    /// Runs a script with these flags of `RUN`; `$seen` is the file that comes out.
    fn run(&self, client: &Tool, flags: &[&str], run: &str, script: &str) -> (Output, PathBuf) {
        let file = format!(
            "FROM scratch\nCOPY busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n\
             ENV seen=/seen\nRUN {run} {script}\n"
        );
        let context = context_with_busybox(&self.remote.lab, "steps", &[("Dockerfile", &file)]);
        let out = self.remote.lab.directory().join("out");
        let _ = std::fs::remove_dir_all(&out);
        let output = format!("type=local,dest={}", text(&out));
        let first = ["build", "--builder=far", "--progress=plain", "-o", &output];
        (client.run(&[&first[..], flags, &[&context]].concat()), out)
    }
}

fn seen(built: &(Output, PathBuf)) -> String {
    assert_eq!(built.0.code, 0, "{}", built.0.stderr);
    std::fs::read_to_string(built.1.join("seen")).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_step_gets_what_the_description_of_its_device_says() {
    let machine = Machine::with(&[]);
    let script = "b=/bin/busybox; exec > $seen; echo $EVERY_DISK $OWN; $b cat /opt/shared/note; \
                  $b stat -c '%t:%T %a %u:%g' /dev/own-null /opt/dev/own-zero; \
                  echo x > /dev/own-null && echo written; \
                  $b head -c 2 /opt/dev/own-zero | $b wc -c; \
                  (echo x > /opt/shared/new) 2> /dev/null || echo not written; $b id -G";
    for (name, client) in machine.remote.clients() {
        let allow = "--allow=device=vendor.example/disk=null";
        let run = "--device=vendor.example/disk=null";
        let built = machine.run(client, &[allow, "--no-cache"], run, script);
        assert_eq!(
            seen(&built),
            "yes its value\nfrom the machine\n1:3 640 0:7\n1:5 444 0:0\nwritten\n2\n\
             not written\n0 4242\n",
            "{name}"
        );
        // Nothing of it is in the layer, only what every step leaves.
        assert_eq!(names(&built.1), ["bin", "proc", "seen", "sys"], "{name}");
    }
}

#[test]
fn devices_are_for_those_who_are_granted_them() {
    let machine = Machine::with(&[]);
    let script = "echo \"${OWN-none} ${ONE-none} ${TWO-none}\" > $seen";
    let required = "is requested by the build but not allowed";
    for (name, client) in machine.remote.clients() {
        let built = |flags: &[&str], run: &str| seen(&machine.run(client, flags, run, script));
        let failed = |flags: &[&str], run: &str| {
            let (output, _) = machine.run(client, flags, run, script);
            assert_ne!(output.code, 0, "{name}: {run}");
            output.stderr
        };
        let disk = "--device=vendor.example/disk=null";
        let error = failed(&[], disk);
        let expected = format!("device vendor.example/disk=null {required}");
        assert!(error.contains(&expected), "{name}: {error}");
        let any = built(&["--allow=device"], disk);
        assert_eq!(any, "its value none none\n", "{name}");
        let alias = "--allow=device=vendor.example/disk=null,alias=mine";
        let own = built(&[alias], "--device=mine");
        assert_eq!(own, "its value none none\n", "{name}");
        let class = built(&[], "--device=a-class");
        assert_eq!(class, "none 1 2\n", "{name}");
        let first = built(&[], "--device=vendor.example/others=two");
        assert_eq!(first, "none none 2\n", "{name}");
        let optional = built(&[], "--device=vendor.example/none");
        assert_eq!(optional, "none none none\n", "{name}");
        let error = failed(&[], "--device=vendor.example/none,required");
        let expected = "required device \"vendor.example/none\" is not registered";
        assert!(error.contains(expected), "{name}: {error}");
        let error = failed(&[], "--device=vendor.example/others=hooked");
        let expected = "CDI device injection failed: device vendor.example/others=hooked needs the \
                        hook createContainer /bin/hook, which is not supported";
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn devices_are_shown_by_every_client() {
    let machine = Machine::with(&[]);
    let devices = |text: &str| {
        let lines = text.lines().skip_while(|line| *line != "Devices:");
        let lines = lines.take_while(|line| !line.is_empty() && !line.starts_with("GC Policy"));
        let lines: Vec<String> = lines
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        lines
    };
    let [ours, stocks] = machine.remote.clients();
    let shown = devices(&ours.1.ok(&["inspect", "far"]).stdout);
    assert_eq!(
        shown[..3],
        [
            "Devices:",
            "Name: vendor.example/disk=null",
            "Automatically allowed: false"
        ]
    );
    // Stock shows the annotations of a device in any order.
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    let stocks = devices(&stocks.1.ok(&["inspect", "far"]).stdout);
    assert_eq!(sorted(shown), sorted(stocks));
    let address = machine.remote.server.address();
    let args = ["buildctl", "--addr", &address, "debug", "workers"];
    let listed = ours.1.ok(&[&args[..], &["-v"]].concat()).stdout;
    assert_eq!(
        devices(&listed)[..3],
        [
            "Devices:",
            "Name: vendor.example/disk=null",
            "AutoAllow: false"
        ]
    );
    let json = ours
        .1
        .ok(&[&args[..], &["--format", "{{json .}}"]].concat());
    let workers: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let device = &workers[0]["cdiDevices"][2];
    assert_eq!(device["name"], "vendor.example/others=one");
    assert_eq!(device["autoAllow"], true);
}

#[test]
fn a_server_without_devices_grants_none() {
    let machine = Machine::with(&["--cdi-disabled"]);
    let script = "echo fine > $seen";
    for (name, client) in machine.remote.clients() {
        let (output, _) = machine.run(client, &["--allow=device"], "", script);
        let expected = "granting entitlement device is not allowed by build daemon configuration";
        assert!(
            output.stderr.contains(expected),
            "{name}: {}",
            output.stderr
        );
        let run = "--device=vendor.example/others=one";
        let without = machine.run(client, &[], run, script);
        assert_eq!(seen(&without), "fine\n", "{name}");
        assert!(!client.ok(&["inspect", "far"]).stdout.contains("Devices:"));
    }
}
