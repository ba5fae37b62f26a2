//! Commands in a container that the frontend asks for.

use proto::gateway::exec_message::Input;
use proto::gateway::{
    ExecMessage, FdMessage, InitMessage, NewContainerRequest, ReleaseContainerRequest,
};
use proto::pb;

use crate::{Error, Frontend};

/// How the container and the processes in it are to be.
#[derive(Default)]
pub struct Wishes {
    pub platform: Option<pb::Platform>,
    pub mounts: Vec<pb::Mount>,
    pub network: pb::NetMode,
    pub security: pb::SecurityMode,
}

impl Wishes {
    /// Takes `KIND DEST ID`.
    pub fn add_mount(&mut self, text: &str) -> Result<(), Error> {
        let words: Vec<&str> = text.split(' ').collect();
        let [kind, dest, id] = words[..] else {
            return Err(format!("not a mount: {text}").into());
        };
        let mut mount = pb::Mount {
            dest: dest.to_owned(),
            ..pb::Mount::default()
        };
        let (id, optional) = match id.strip_suffix('?') {
            Some(id) => (id.to_owned(), true),
            None => (id.to_owned(), false),
        };
        mount.mount_type = match kind {
            "ssh" => {
                mount.ssh_opt = Some(pb::SshOpt {
                    id,
                    uid: 7,
                    gid: 8,
                    mode: 0o660,
                    optional,
                });
                pb::MountType::Ssh.into()
            }
            "secret" => {
                mount.secret_opt = Some(pb::SecretOpt {
                    id,
                    mode: 0o400,
                    optional,
                    ..pb::SecretOpt::default()
                });
                pb::MountType::Secret.into()
            }
            "cache" => {
                mount.cache_opt = Some(pb::CacheOpt { id, sharing: 0 });
                pb::MountType::Cache.into()
            }
            "tmpfs" => pb::MountType::Tmpfs.into(),
            other => return Err(format!("unknown kind of mount: {other}").into()),
        };
        self.mounts.push(mount);
        Ok(())
    }
}

impl Frontend {
    /// Runs commands one after the other in one container; the first process waits for the others.
    pub async fn ask(
        &mut self,
        reference: &str,
        wishes: &Wishes,
        commands: &[String],
    ) -> Result<String, Error> {
        const CONTAINER: &str = "questions";
        let root = pb::Mount {
            dest: "/".into(),
            result_id: reference.to_owned(),
            ..pb::Mount::default()
        };
        let request = NewContainerRequest {
            container_id: CONTAINER.to_owned(),
            mounts: std::iter::once(root)
                .chain(wishes.mounts.iter().cloned())
                .collect(),
            platform: wishes.platform.clone(),
            network: wishes.network.into(),
            ..NewContainerRequest::default()
        };
        self.gateway.new_container(request).await?;
        let (sender, messages) = tokio::sync::mpsc::channel(16);
        let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
        let init = |number: usize, command: &str| {
            let init = InitMessage {
                container_id: CONTAINER.to_owned(),
                meta: Some(pb::Meta {
                    args: vec!["/bin/sh".into(), "-c".into(), command.to_owned()],
                    ..pb::Meta::default()
                }),
                fds: if number == 0 { vec![0] } else { vec![1] },
                security: wishes.security.into(),
                ..InitMessage::default()
            };
            message(&number.to_string(), Input::Init(init))
        };
        let first = "cat > /dev/null".to_owned();
        // A server may answer the call itself only when it has something to say.
        sender.send(init(0, &first)).await?;
        let mut replies = self.gateway.exec_process(messages).await?.into_inner();
        let mut answers = String::new();
        for (number, command) in std::iter::once(&first).chain(commands).enumerate() {
            if number > 0 {
                sender.send(init(number, command)).await?;
            }
            while let Some(reply) = replies.message().await? {
                match reply.input {
                    Some(Input::File(file)) => answers += &String::from_utf8_lossy(&file.data),
                    Some(Input::Exit(exit)) if exit.code != 0 => {
                        let why = exit.error.map(|error| error.message);
                        let why = why.unwrap_or_else(|| format!("exit code: {}", exit.code));
                        return Err(format!("{command}: {why}").into());
                    }
                    Some(Input::Started(_)) if number == 0 => break,
                    Some(Input::Done(_)) => break,
                    _ => {}
                }
            }
        }
        let end = FdMessage {
            eof: true,
            ..FdMessage::default()
        };
        sender.send(message("0", Input::File(end))).await?;
        let release = ReleaseContainerRequest {
            container_id: CONTAINER.to_owned(),
        };
        self.gateway.release_container(release).await?;
        Ok(answers)
    }
}

fn message(process: &str, input: Input) -> ExecMessage {
    ExecMessage {
        process_id: process.to_owned(),
        input: Some(input),
    }
}
