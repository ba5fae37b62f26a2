//! A socket through which a step reaches the client's ssh agent.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use diag::{Context, Result};
use session::Session;
use tokio::net::UnixListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A listening socket; each connection to it is one to the client's agent. Dropping it ends all of
/// them and removes it.
pub struct SshSocket {
    path: PathBuf,
    _serving: DropGuard,
}

impl SshSocket {
    /// Opens a socket in `dir` for the client's agent of that id, with that owner and mode.
    pub fn open(
        dir: &Path,
        session: Session,
        id: &str,
        (uid, gid, mode): (u32, u32, u32),
    ) -> Result<Self> {
        std::fs::create_dir_all(dir).context("ssh socket")?;
        let path = dir.join(format!("ssh-{:016x}", random()?));
        let listener = UnixListener::bind(&path).context("ssh socket")?;
        let serving = CancellationToken::new();
        let socket = SshSocket {
            path,
            _serving: serving.clone().drop_guard(),
        };
        std::fs::set_permissions(&socket.path, std::fs::Permissions::from_mode(mode & 0o777))
            .and_then(|()| std::os::unix::fs::chown(&socket.path, Some(uid), Some(gid)))
            .context("ssh socket")?;
        let id = id.to_owned();
        tokio::spawn(async move { serve(listener, session, id, serving).await });
        Ok(socket)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SshSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve(listener: UnixListener, session: Session, id: String, end: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.cancelled() => return,
        };
        let Ok((mut local, _)) = accepted else { return };
        let (session, id, end) = (session.clone(), id.clone(), end.clone());
        tokio::spawn(async move {
            let forward = async {
                match session.ssh_forward(&id).await {
                    Ok(mut remote) => {
                        let copied = tokio::io::copy_bidirectional(&mut local, &mut remote).await;
                        if let Err(error) = copied {
                            tracing::debug!("ssh forwarding ended: {error}");
                        }
                    }
                    Err(error) => tracing::warn!("ssh forwarding: {error}"),
                }
            };
            tokio::select! {
                () = forward => {}
                () = end.cancelled() => {}
            }
        });
    }
}

fn random() -> Result<u64> {
    let mut bytes = [0_u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(std::io::Error::from)?;
    Ok(u64::from_le_bytes(bytes))
}
