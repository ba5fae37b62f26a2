//! Dockerfiles, sent by stock `docker-buildx` to our server and to the Engine's own BuildKit.

use testkit::Tool;

use super::site::{Repositories, Web};
use super::{Built, Matrix, alike, git, told, tree};
use crate::workshop::text;

/// A Dockerfile after `FROM base AS base`; its last stage is the result.
pub struct Recipe {
    pub name: &'static str,
    text: &'static str,
    flags: &'static [&'static str],
}

const fn recipe(name: &'static str, text: &'static str) -> Recipe {
    with(name, text, &[])
}

pub const fn with(
    name: &'static str,
    text: &'static str,
    flags: &'static [&'static str],
) -> Recipe {
    Recipe { name, text, flags }
}

/// What the context of all recipes has.
const CONTEXT: &[(&str, &str)] = &[
    ("a/config", "of a\n"),
    ("b/config", "of b\n"),
    ("a/deep/er/file.txt", "deep\n"),
    ("top.txt", "top\n"),
    ("skip.log", "never sent\n"),
    ("src/main.c", "int main;\n"),
    ("src/main.h", "//\n"),
    ("src/lib/lib.c", "int lib;\n"),
    (".dockerignore", "*.log\n"),
];

const RECIPES: &[Recipe] = &[
    recipe(
        "files of one name from two folders",
        "FROM base AS x\nCOPY a/config /c\nFROM base AS y\nCOPY b/config /c\nFROM scratch\nCOPY --from=x /c /x\nCOPY --from=y /c /y\n",
    ),
    recipe(
        "patterns of one form in two folders",
        "FROM base AS x\nCOPY a/* /c/\nFROM base AS y\nCOPY b/* /c/\nFROM scratch\nCOPY --from=x /c /x\nCOPY --from=y /c /y\n",
    ),
    recipe(
        "one name out of two folders of a stage",
        "FROM base AS s\nRUN mkdir /p /q && echo p >/p/f && echo q >/q/f\nFROM scratch AS x\nCOPY --from=s /p/f /f\nFROM scratch AS y\nCOPY --from=s /q/f /f\nFROM scratch\nCOPY --from=x /f /x\nCOPY --from=y /f /y\n",
    ),
    recipe(
        "copies",
        "FROM scratch\nCOPY . /all/\nCOPY top.txt a /mixed/\nCOPY src/*.c /c/\nCOPY a/deep /x/y/z/\nCOPY top.txt /renamed\n",
    ),
    recipe(
        "modes and owners",
        "FROM base AS s\nCOPY --chmod=600 --chown=app:wheel a /o/\nCOPY --chmod=u=rwX,go=rX --chown=7:8 top.txt /o/p/q\nCOPY --chown=app src /o/s\nADD --chmod=755 --chown=daemon top.txt /o/added\nFROM scratch\nCOPY --from=s /o /o\n",
    ),
    recipe(
        "links and excludes",
        "FROM scratch\nCOPY --link top.txt /l/\nCOPY --link --chown=7:8 a /l/a/\nCOPY --exclude=*.h --exclude=lib src /e/\n",
    ),
    recipe(
        "here documents",
        "FROM base AS s\nRUN <<E\nmkdir /o\necho $((1+1)) >/o/sum\nE\nCOPY <<E <<\"F\" /o/\n$PATH\nE\n$PATH\nF\nRUN <<E cat >/o/in\nfrom stdin\nE\nFROM scratch\nCOPY --from=s /o /\n",
    ),
    recipe(
        "mounts",
        "FROM base AS s\nRUN mkdir /o && --mount=type=tmpfs,target=/t true || true\nRUN --mount=type=bind,source=a,target=/in cp -r /in /o/in && (echo x >/in/new) 2>/dev/null || echo read-only >/o/said\nRUN --mount=type=bind,source=a,target=/in,rw echo x >/in/new && ls /in >/o/ls\nRUN ls /in >/o/after 2>&1 || true\nRUN --mount=type=tmpfs,target=/t,size=1m df -k /t | tail -1 | awk '{print $2}' >/o/size\nRUN --mount=type=cache,target=/c,uid=1000,gid=10,mode=0750 stat -c '%a %u:%g' /c >/o/cache\nRUN --mount=from=base,target=/b ls /b/etc >/o/etc\nFROM scratch\nCOPY --from=s /o /\n",
    ),
    with(
        "secrets",
        "FROM base AS s\nRUN mkdir /o\nRUN --mount=type=secret,id=k stat -c '%a %u:%g %s' /run/secrets/k >/o/stat\nRUN --mount=type=secret,id=k,target=/s,mode=0444,uid=5,gid=6 cp /s /o/copy && stat -c '%a %u:%g' /s >/o/stat2\nRUN --mount=type=secret,id=k,env=KEY echo $KEY >/o/env\nRUN --mount=type=secret,id=none ls /run/secrets >/o/none 2>&1 || true\nFROM scratch\nCOPY --from=s /o /\n",
        &["--secret", "id=k,env=RECIPE_SECRET"],
    ),
    recipe(
        "a secret that must be there",
        "FROM base\nRUN --mount=type=secret,id=none,required=true true\n",
    ),
    recipe(
        "an agent that must be there",
        "FROM base\nRUN --mount=type=ssh,required=true true\n",
    ),
    recipe(
        "network none",
        "FROM base AS s\nRUN --network=none ls /sys/class/net >/n\nFROM scratch\nCOPY --from=s /n /\n",
    ),
    recipe(
        "network host not granted",
        "FROM base\nRUN --network=host true\n",
    ),
    with(
        "options of all steps",
        "FROM base AS s\nRUN mkdir /o && cat /etc/hosts >/o/hosts && ulimit -n >/o/n && df -k /dev/shm | tail -1 | awk '{print $2}' >/o/shm && hostname >/o/name\nFROM scratch\nCOPY --from=s /o /\n",
        &[
            "--add-host",
            "db:10.1.2.3",
            "--ulimit",
            "nofile=77:88",
            "--shm-size",
            "8m",
            "--build-arg",
            "BUILDKIT_SANDBOX_HOSTNAME=cask",
        ],
    ),
    with(
        "proxies",
        "FROM base AS s\nARG http_proxy\nRUN mkdir /o && env | grep -i _proxy | sort >/o/env\nFROM scratch\nCOPY --from=s /o /\n",
        &[
            "--build-arg",
            "http_proxy=http://p:1",
            "--build-arg",
            "NO_PROXY=x",
        ],
    ),
    recipe(
        "users and folders",
        "FROM base AS s\nRUN mkdir -m 777 /o\nUSER app\nWORKDIR /home/app/made\nRUN id >/o/id; pwd >/o/pwd; echo $HOME >/o/home; stat -c '%a %u:%g' . >/o/stat\nUSER 1000:10\nWORKDIR rel\nRUN id >/o/id2; pwd >/o/pwd2\nFROM scratch\nCOPY --from=s /o /\n",
    ),
    recipe(
        "shells and arguments",
        "FROM base AS s\nSHELL [\"/bin/sh\", \"-ec\"]\nARG x=1\nENV y=$x z=\"a b\"\nRUN mkdir /o; echo \"$x$y$z\" >/o/v\nRUN [\"/bin/sh\", \"-c\", \"echo exec >/o/e\"]\nFROM scratch\nCOPY --from=s /o /\n",
    ),
    recipe("a step that fails", "FROM base\nRUN echo before; exit 42\n"),
    recipe("a file that is not there", "FROM base\nCOPY nonesuch /x\n"),
    recipe(
        "a user that is not there",
        "FROM base\nUSER nonesuch\nRUN true\n",
    ),
    recipe(
        "archives",
        "FROM base AS s\nRUN mkdir -p /w/d && echo f >/w/d/f && tar -C /w -czf /x.tgz d\nFROM scratch\nADD top.txt /t/\nCOPY --from=s /x.tgz /kept/\n",
    ),
    recipe(
        "files of the web",
        "FROM scratch\nADD http://127.0.0.1:5557/plain /w/\nADD http://127.0.0.1:5557/named http://127.0.0.1:5557/dir/plain.txt /w/\nADD --chmod=640 --chown=7:8 http://127.0.0.1:5557/moved /w/renamed\n",
    ),
    recipe(
        "a file of the web that is another",
        "FROM scratch\nADD --checksum=sha256:0000000000000000000000000000000000000000000000000000000000000000 http://127.0.0.1:5557/plain /w/\n",
    ),
    recipe(
        "repositories",
        "FROM scratch\nADD http://127.0.0.1:8418/part.git /whole\nADD http://127.0.0.1:8418/r.git#v1:dir /v1\nADD --chown=7:8 http://127.0.0.1:8418/inner.git#main /inner/\n",
    ),
    recipe(
        "a branch that is not there",
        "FROM scratch\nADD http://127.0.0.1:8418/inner.git#nonesuch /x\n",
    ),
    recipe(
        "what is on build",
        "FROM base AS s\nONBUILD RUN echo x >/never\nFROM scratch\nCOPY --from=s /etc/passwd /p\n",
    ),
];

#[test]
fn matrix_dockerfiles_by_the_stock_client() {
    let matrix = Matrix::start(&[]);
    let (_web, _repositories) = (Web::start(), Repositories::start(&matrix));
    let stock = matrix.shop.stock().env("RECIPE_SECRET", "iron hoops");
    let far = matrix.server.address();
    stock.ok(&["create", "--name", "far", "--driver", "remote", &far]);
    let context = matrix.shop.context("recipes", CONTEXT);
    for entry in [
        "",
        "a",
        "a/config",
        "a/deep",
        "a/deep/er",
        "a/deep/er/file.txt",
        "b",
        "b/config",
        "top.txt",
        "src",
        "src/main.c",
        "src/main.h",
        "src/lib",
        "src/lib/lib.c",
    ] {
        let path = std::path::Path::new(&context).join(entry);
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_400_000_000);
        std::fs::File::open(path)
            .unwrap()
            .set_modified(time)
            .unwrap();
    }
    let mut differences = Vec::new();
    for recipe in RECIPES {
        let ours = build(&matrix, &stock, "far", &context, recipe);
        let theirs = build(&matrix, &stock, "default", &context, recipe);
        if !alike(&ours, &theirs) {
            differences.push(told(recipe.name, &ours, &theirs));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Builds a recipe by a client of stock's kind.
pub fn build(
    matrix: &Matrix,
    client: &Tool,
    builder: &str,
    context: &str,
    recipe: &Recipe,
) -> Built {
    let directory = matrix.shop.lab.subdirectory("recipe");
    let (archive, file) = (directory.join("result.tar"), directory.join("Dockerfile"));
    let from = format!("FROM {} AS base\n", matrix.base);
    let text_of = match recipe.text.split_once('\n') {
        Some((first, rest)) if first.starts_with("# syntax") => format!("{first}\n{from}{rest}"),
        _ => from + recipe.text,
    };
    std::fs::write(&file, text_of).unwrap();
    let (output, file) = (format!("type=tar,dest={}", text(&archive)), text(&file));
    let mut arguments = vec![
        "build",
        "--builder",
        builder,
        "--progress",
        "plain",
        "-o",
        &output,
        "-f",
        &file,
    ];
    arguments.extend_from_slice(recipe.flags);
    arguments.push(context);
    let ran = client.run(&arguments);
    if ran.code != 0 {
        let last = ran
            .stderr
            .lines()
            .rev()
            .find(|line| line.starts_with("ERROR: "));
        let last = last.unwrap_or(&ran.stderr).trim_start_matches("ERROR: ");
        return Err(format!("{}\nerror: {last}\n", ran.stderr));
    }
    let found = directory.join("tree");
    let seen = tree::of_archive(&archive, &found, matrix.started);
    Ok(git::without_dead_links(&found, seen))
}
