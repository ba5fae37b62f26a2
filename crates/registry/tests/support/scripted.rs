//! A registry that does exactly what a test tells it to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `GET /v2/…`.
    pub line: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
}

/// What is answered.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// The connection breaks after so many bytes of the body.
    pub break_after: Option<usize>,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Reply {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            break_after: None,
        }
    }

    pub fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A server on this machine; it ends with the runtime of the test.
pub struct Scripted {
    pub host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Scripted {
    /// `script` gets each request and how many came before it.
    pub async fn start<F>(script: F) -> Self
    where
        F: Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (script, log) = (Arc::new(script), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, log) = (Arc::clone(&script), Arc::clone(&log));
                tokio::spawn(async move {
                    let _ = serve(stream, script.as_ref(), &log).await;
                });
            }
        });
        Scripted { host, asked }
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Their first lines without the version.
    pub fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }
}

async fn serve<F>(stream: TcpStream, script: &F, log: &Mutex<Vec<Asked>>) -> std::io::Result<()>
where
    F: Fn(&Asked, usize) -> Reply,
{
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).await?;
            let Some((name, value)) = header.trim_end().split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|v| v.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).await?;
        let line = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
        let asked = Asked { line, headers };
        let reply = {
            let mut log = log.lock().unwrap();
            log.push(asked.clone());
            script(&asked, log.len() - 1)
        };
        let mut head = format!("HTTP/1.1 {} x\r\n", reply.status);
        if !reply
            .headers
            .iter()
            .any(|(name, _)| *name == "content-length")
        {
            head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
        }
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).await?;
        if asked.line.starts_with("HEAD ") {
            continue;
        }
        let end = reply.break_after.unwrap_or(reply.body.len());
        stream.write_all(&reply.body[..end]).await?;
        stream.flush().await?;
        if reply.break_after.is_some() {
            return Ok(());
        }
    }
}
