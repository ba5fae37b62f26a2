//! Where operations write: links, `..`, groups that directories pass on, roots that nothing may write to.

use llb::{FileActionKind, MkDirAction, MkFileAction, MountKind, SymlinkAction};

use super::graph::{Llb, TIME};
use super::{Case, Matrix};

/// What generated graphs found: directories that pass on their group, and links before `..`.
const TREE: &str = "cd /out; mkdir -p a/b; mkdir -m 2775 g; chown 0:10 g; ln -s a/b l; echo x >file; \
    find . -depth | while read f; do touch -h -d '2015-01-02 00:00:00' $f; done";

fn case(matrix: &Matrix, name: &str, kind: FileActionKind) -> Case {
    Case::of(name, matrix, |llb| {
        let tree = llb.sh(TREE);
        llb.file(Some(tree), None, kind)
    })
}

fn mkdir(path: &str, make_parents: bool) -> FileActionKind {
    FileActionKind::MkDir(MkDirAction {
        path: path.into(),
        mode: 0o755,
        make_parents,
        ..MkDirAction::default()
    })
}

fn mkfile(path: &str) -> FileActionKind {
    FileActionKind::MkFile(MkFileAction {
        path: path.into(),
        mode: 0o644,
        timestamp: Some(TIME),
        ..MkFileAction::default()
    })
}

fn symlink(path: &str) -> FileActionKind {
    FileActionKind::Symlink(SymlinkAction {
        oldpath: "x".into(),
        newpath: path.into(),
        timestamp: Some(TIME),
        ..SymlinkAction::default()
    })
}

#[test]
fn matrix_operations_write_to_the_same_places() {
    let matrix = Matrix::start(&[]);
    let case = |name: &str, kind| case(&matrix, name, kind);
    matrix.compare(&[
        case("a group passed on", mkdir("/g/new", false)),
        case("a group passed on twice", mkdir("/g/new/deep", true)),
        case("mkdir up from a link", mkdir("/l/../new", false)),
        case("mkfile up from a link", mkfile("/l/../new")),
        case("symlink up from a link", symlink("/l/../new")),
        // Which path an error names.
        case("mkfile without a slash", mkfile("none/new")),
        case("mkfile with a slash", mkfile("/none/new/")),
        case("mkfile below a link", mkfile("/l/none/new")),
        case("mkfile onto a directory", mkfile("/l")),
        case("symlink below a link", symlink("l/none/new")),
    ]);
}

#[test]
fn matrix_mount_points_in_a_read_only_root_are_not_left_in_its_image() {
    let matrix = Matrix::start(&[]);
    let step = |output: Option<usize>| {
        Case::of(
            &format!("root as output {output:?}"),
            &matrix,
            |llb: &mut Llb| {
                let step = llb
                    .step("pwd >/tmp/seen")
                    .with("/deep/new", MountKind::Tmpfs { size: 0 });
                let step = step.change(|exec| {
                    exec.cwd = "/made/here".into();
                    exec.mounts[0].readonly = true;
                    exec.mounts[0].output = output;
                    exec.mounts[1].dest = "/tmp".into();
                    exec.mounts[1].output = Some(output.map_or(0, |_| 1));
                });
                match output {
                    None => llb.run_for_root(step),
                    Some(_) => llb.run(step),
                }
            },
        )
    };
    for output in [None, Some(0)] {
        let built = matrix.build(&step(output)).unwrap();
        assert!(built[0].ends_with("\"/made/here\\n\""), "{built:?}");
    }
    // The base image has a single layer, which is mounted as it is.
    matrix.compare(&[Case::of("the image afterwards", &matrix, Llb::base)]);
}
