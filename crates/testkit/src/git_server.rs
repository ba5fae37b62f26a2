//! A web server with git repositories and plain files: Debian's `git http-backend` behind the smallest
//! HTTP server.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// What a server is to do besides serving.
#[derive(Clone, Debug, Default)]
pub struct GitServerOptions {
    /// The `Authorization` header without which nothing is given.
    pub authorization: Option<String>,
    /// Whether only the first version of git's protocol is spoken.
    pub first_version: bool,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct GitRequestSeen {
    /// Path and query.
    pub target: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// How many bytes the body of the answer had.
    pub answer_bytes: usize,
}

/// A running server. What is below `/moved` of it is answered by a redirect to the same without it;
/// what is below `/files` are the files of that folder.
///
/// It serves in threads of this process, so it is in the network of the thread that started it, and
/// ends with the process.
#[derive(Clone)]
pub struct GitServer {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<GitRequestSeen>>>,
}

impl GitServer {
    /// Serves the repositories below `root` at that address (port 0: any).
    pub fn start(root: &Path, address: &str, options: GitServerOptions) -> GitServer {
        let listener = TcpListener::bind(address).expect("bind the git server's address");
        let address = listener.local_addr().expect("an address");
        let seen: Arc<Mutex<Vec<GitRequestSeen>>> = Arc::default();
        let (root, log) = (root.to_owned(), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (root, log, options) = (root.clone(), log.clone(), options.clone());
                std::thread::spawn(move || {
                    // A client that goes away is nothing to fail for.
                    let _ = answer(stream, &root, &log, &options);
                });
            }
        });
        GitServer { address, seen }
    }

    /// The address of a repository.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// Takes the requests that came since the last time.
    pub fn take_seen(&self) -> Vec<GitRequestSeen> {
        std::mem::take(&mut self.seen.lock().expect("no thread panics with the log"))
    }
}

fn answer(
    mut stream: TcpStream,
    root: &Path,
    log: &Mutex<Vec<GitRequestSeen>>,
    options: &GitServerOptions,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let method = words.next().unwrap_or_default();
    let target = words.next().unwrap_or_default();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => break,
        }
    }
    let header = |name: &str| {
        let found = headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    };
    let body = read_body(&mut reader, &header)?;
    let mut seen = GitRequestSeen {
        target: target.clone(),
        authorization: header("authorization"),
        answer_bytes: 0,
    };
    let (head, body) = if let Some(rest) = target.strip_prefix("/moved/") {
        (format!("302 Found\r\nLocation: /{rest}"), Vec::new())
    } else if options.authorization.is_some() && options.authorization != seen.authorization {
        let head = "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"";
        (head.to_owned(), Vec::new())
    } else if let Some(name) = target.strip_prefix("/files/") {
        match std::fs::read(root.join("files").join(name)) {
            Ok(content) => ("200 OK".to_owned(), content),
            Err(_) => ("404 Not Found".to_owned(), Vec::new()),
        }
    } else {
        backend(root, &method, &target, &header, body, options)?
    };
    seen.answer_bytes = body.len();
    log.lock()
        .expect("no thread panics with the log")
        .push(seen);
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(&body)
}

fn read_body(
    reader: &mut impl BufRead,
    header: &impl Fn(&str) -> Option<String>,
) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if header("transfer-encoding").as_deref() == Some("chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return Ok(body);
            }
        }
    }
    let length = header("content-length").and_then(|text| text.parse().ok());
    body.resize(length.unwrap_or(0), 0);
    reader.read_exact(&mut body)?;
    Ok(body)
}

/// Lets git answer; returns the status with the headers, and the body.
fn backend(
    root: &Path,
    method: &str,
    target: &str,
    header: &impl Fn(&str) -> Option<String>,
    body: Vec<u8>,
    options: &GitServerOptions,
) -> std::io::Result<(String, Vec<u8>)> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut command = Command::new("git");
    command
        .args(["-c", "safe.directory=*", "http-backend"])
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", method)
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("CONTENT_TYPE", header("content-type").unwrap_or_default())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if let Some(encoding) = header("content-encoding") {
        command.env("HTTP_CONTENT_ENCODING", encoding);
    }
    match header("git-protocol") {
        Some(version) if !options.first_version => command.env("GIT_PROTOCOL", version),
        _ => command.env_remove("GIT_PROTOCOL"),
    };
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take();
    let writer = std::thread::spawn(move || stdin.as_mut().map(|stdin| stdin.write_all(&body)));
    let output = child.wait_with_output()?.stdout;
    let _ = writer.join();
    let end = output.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.unwrap_or(output.len());
    let head = String::from_utf8_lossy(&output[..end]).into_owned();
    let body = output.get(end + 4..).unwrap_or_default().to_vec();
    let status = head
        .lines()
        .find_map(|line| line.strip_prefix("Status: "))
        .unwrap_or("200 OK");
    Ok((format!("{status}\r\n{head}"), body))
}

/// A repository for tests, with a work tree that files are put in and committed from.
pub struct GitWork {
    path: PathBuf,
}

impl GitWork {
    /// Makes an empty repository with the branch `main`; `options` are further ones of `git init`.
    pub fn init(path: &Path, options: &[&str]) -> GitWork {
        std::fs::create_dir_all(path).expect("make the repository's directory");
        let work = GitWork {
            path: path.to_owned(),
        };
        work.git(&[&["init", "-q", "-b", "main"], options].concat());
        work
    }

    /// One that is there already.
    pub fn at(path: &Path) -> GitWork {
        GitWork {
            path: path.to_owned(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs git in it and returns what it says; its failure panics.
    pub fn git(&self, args: &[&str]) -> String {
        let mut git = Command::new("git");
        git.env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .args(["-c", "protocol.file.allow=always", "-c", "user.name=A"])
            .args(["-c", "user.email=a@example.org", "-c", "safe.directory=*"])
            .current_dir(&self.path);
        for who in ["GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"] {
            git.env(who, "1600000000 +0000");
        }
        let output = git.args(args).output().expect("run `git` (package git)");
        assert!(output.status.success(), "git {args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Writes a file.
    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path.join(name);
        std::fs::create_dir_all(path.parent().expect("a path with a parent"))
            .expect("make folders");
        std::fs::write(path, content).expect("write a file");
    }

    /// Commits everything and returns the commit's name.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", message]);
        self.git(&["rev-parse", "HEAD"])
    }
}
