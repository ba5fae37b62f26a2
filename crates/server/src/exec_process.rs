//! `ExecProcess`: processes of containers, with their streams, over one stream of messages each way.
//!
//! ```text
//! client: Init, File (input), Resize, Signal        ─►
//!                                                   ◄─  Started, File (output), Exit, Done
//! ```
//! Started comes first and Done last; output may still come after Exit, when something that the
//! process started goes on writing. Messages of several processes go through one stream.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use diag::Error;
use executor::{ExecError, ExitStatus, Process, ProcessIo, Stdio, Terminal, WindowSize};
use futures::{Stream, StreamExt};
use ops::work::ContainerProcess;
use proto::gateway::exec_message::Input;
use proto::gateway::{
    DoneMessage, ExecMessage, ExitMessage, FdMessage, InitMessage, StartedMessage,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::errors::{to_rpc_status, to_status};
use crate::gateway_build::GatewayBuild;
use crate::gateway_containers::Container;
use crate::stdio::pipe;

/// Messages to the client that wait to be sent.
const REPLIES_MAX: usize = 32;
/// Pieces of input that a process has not read yet; more than these hold the stream up.
const INPUT_PIECES_MAX: usize = 256;
/// How much output goes into one message, in bytes.
const OUTPUT_BYTES_MAX: usize = 32 << 10;
/// The exit code of a process that has none, as the protocol has it.
const UNKNOWN_EXIT_CODE: u32 = 255;

/// The messages to the client.
pub type Replies = ReceiverStream<Result<ExecMessage, Status>>;

/// Serves one stream.
pub fn serve<S>(build: Arc<GatewayBuild>, messages: S) -> Replies
where
    S: Stream<Item = Result<ExecMessage, Status>> + Send + Unpin + 'static,
{
    let (sender, replies) = mpsc::channel(REPLIES_MAX);
    tokio::spawn(async move {
        let mut talk = Talk {
            build,
            replies: sender.clone(),
            processes: HashMap::new(),
        };
        if let Err(status) = talk.listen(messages).await {
            let _ = sender.send(Err(status)).await;
        }
    });
    ReceiverStream::new(replies)
}

/// One stream and its processes.
struct Talk {
    build: Arc<GatewayBuild>,
    replies: mpsc::Sender<Result<ExecMessage, Status>>,
    processes: HashMap<String, Handle>,
}

/// A process as its client reaches it.
struct Handle {
    /// `None` when it is closed or was never there.
    input: Option<mpsc::Sender<Bytes>>,
    commands: mpsc::UnboundedSender<Command>,
}

enum Command {
    Resize(WindowSize),
    Signal(i32),
}

/// Our ends of a process's streams.
struct Streams {
    input: Option<pipe::Sender>,
    /// By the number of the descriptor.
    outputs: Vec<(u32, pipe::Receiver)>,
}

impl Talk {
    /// Until the client has nothing more to say, and its processes go on, or the build has ended.
    async fn listen<S>(&mut self, mut messages: S) -> Result<(), Status>
    where
        S: Stream<Item = Result<ExecMessage, Status>> + Send + Unpin,
    {
        let closed = self.build.containers().closed().clone();
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                () = self.replies.closed() => return Ok(()),
                () = closed.cancelled() => return Ok(()),
            };
            match message {
                None => return Ok(()),
                Some(message) => self.hear(message?).await?,
            }
        }
    }

    async fn hear(&mut self, message: ExecMessage) -> Result<(), Status> {
        let id = message.process_id;
        if id.is_empty() {
            return Err(Status::invalid_argument("ProcessID required"));
        }
        let input = match message.input {
            Some(Input::Init(init)) => return self.start(id, init).await,
            input => input,
        };
        let handle = self
            .processes
            .get_mut(&id)
            .ok_or_else(|| Status::not_found(format!("IO for process {id:?} not found")))?;
        match input {
            Some(Input::File(file)) => handle.write(file).await,
            Some(Input::Resize(size)) => {
                let characters = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
                let _ = handle.commands.send(Command::Resize(WindowSize {
                    rows: characters(size.rows),
                    columns: characters(size.cols),
                }));
                Ok(())
            }
            Some(Input::Signal(signal)) => {
                let number = signal_number(&signal.name).ok_or_else(|| {
                    Status::invalid_argument(format!("Unknown signal {}", signal.name))
                })?;
                let _ = handle.commands.send(Command::Signal(number));
                Ok(())
            }
            // The rest is for the client to hear.
            _ => Ok(()),
        }
    }

    async fn start(&mut self, id: String, init: InitMessage) -> Result<(), Status> {
        if self.processes.contains_key(&id) {
            let text = format!("Process {id} already exists");
            return Err(Status::already_exists(text));
        }
        let container = self.build.containers().get(&init.container_id);
        let container = container.ok_or_else(|| {
            Status::not_found(format!(
                "container {:?} previously released or not created",
                init.container_id
            ))
        })?;
        let (io, streams) = open_streams(&init).map_err(|error| to_status(&error))?;
        let voice = Voice {
            id: id.clone(),
            replies: self.replies.clone(),
            ended: container.ended().clone(),
        };
        let (commands, orders) = mpsc::unbounded_channel();
        let process = match container.start(specification(init)?, io).await {
            Ok(process) => process,
            Err(error) => {
                // Nobody reads what is said to it, which is no mistake of who says it.
                let input = streams.input.map(|_| mpsc::channel(1).0);
                self.processes.insert(id, Handle { input, commands });
                voice.say_that_it_never_ran(error).await;
                return Ok(());
            }
        };
        let mut handle = Handle {
            input: None,
            commands,
        };
        if let Some(pipe) = streams.input {
            let (sender, pieces) = mpsc::channel(INPUT_PIECES_MAX);
            handle.input = Some(sender);
            tokio::spawn(pass_input(pieces, pipe, container.ended().clone()));
        }
        self.processes.insert(id, handle);
        let attended = attend(container.clone(), process, streams.outputs, orders, voice);
        container.tasks().spawn(attended);
        Ok(())
    }
}

impl Handle {
    async fn write(&mut self, file: FdMessage) -> Result<(), Status> {
        let unavailable = || Status::out_of_range(format!("fd {} unavailable to write", file.fd));
        let input = self.input.as_ref().filter(|_| file.fd == 0);
        let input = input.ok_or_else(unavailable)?;
        if !file.data.is_empty() {
            // A process that has ended, or closed its input, does not want it: no mistake.
            let _ = input.send(Bytes::from(file.data)).await;
        }
        if file.eof {
            self.input = None;
        }
        Ok(())
    }
}

/// What a process says to its client.
struct Voice {
    id: String,
    replies: mpsc::Sender<Result<ExecMessage, Status>>,
    ended: CancellationToken,
}

impl Voice {
    /// False when nobody listens any more. A client that does not read does not keep a released
    /// container.
    async fn say(&self, input: Input) -> bool {
        let message = ExecMessage {
            process_id: self.id.clone(),
            input: Some(input),
        };
        let message = match self.replies.try_send(Ok(message)) {
            Ok(()) => return true,
            Err(mpsc::error::TrySendError::Closed(_)) => return false,
            Err(mpsc::error::TrySendError::Full(message)) => message,
        };
        tokio::select! {
            sent = self.replies.send(message) => sent.is_ok(),
            () = self.ended.cancelled() => false,
        }
    }

    /// Of a process that could not be started: clients wait for its beginning before its end.
    async fn say_that_it_never_ran(&self, error: Error) {
        self.say(Input::Started(StartedMessage {})).await;
        self.say(Input::Exit(failure(error))).await;
        self.say(Input::Done(DoneMessage {})).await;
    }

    async fn pass_output(&self, fd: u32, mut pipe: pipe::Receiver) {
        let mut buffer = vec![0; OUTPUT_BYTES_MAX];
        while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
            let data = buffer[..count].to_vec();
            let file = FdMessage {
                fd,
                eof: false,
                data,
            };
            if !self.say(Input::File(file)).await {
                return;
            }
        }
        let end = FdMessage {
            fd,
            eof: true,
            data: Vec::new(),
        };
        self.say(Input::File(end)).await;
    }
}

/// Sees a process to its end, and to the end of its output.
async fn attend(
    container: Arc<Container>,
    process: Process,
    outputs: Vec<(u32, pipe::Receiver)>,
    orders: mpsc::UnboundedReceiver<Command>,
    voice: Voice,
) {
    voice.say(Input::Started(StartedMessage {})).await;
    let exit = async {
        let ended = until_it_ends(process, orders, container.ended()).await;
        voice.say(Input::Exit(exit_message(ended))).await;
    };
    let outputs = outputs
        .into_iter()
        .map(|(fd, pipe)| voice.pass_output(fd, pipe));
    let outputs = async {
        let all = futures::future::join_all(outputs);
        tokio::select! {
            _ = all => {}
            // What a killed container still writes is nobody's.
            () = container.ended().cancelled() => {}
        }
    };
    tokio::join!(exit, outputs);
    voice.say(Input::Done(DoneMessage {})).await;
}

async fn until_it_ends(
    mut process: Process,
    mut orders: mpsc::UnboundedReceiver<Command>,
    released: &CancellationToken,
) -> Result<ExitStatus, ExecError> {
    let (mut killed, mut ordered) = (false, true);
    loop {
        tokio::select! {
            biased;
            ended = process.wait() => match killed {
                true => return Err(ExecError::Canceled),
                false => return ended,
            },
            () = released.cancelled(), if !killed => {
                process.kill();
                killed = true;
            }
            order = orders.recv(), if ordered => match order {
                Some(Command::Resize(size)) => process.resize(size),
                Some(Command::Signal(number)) => process.signal(number),
                None => ordered = false,
            },
        }
    }
}

fn exit_message(ended: Result<ExitStatus, ExecError>) -> ExitMessage {
    match ended {
        Ok(status) if status.success() => ExitMessage::default(),
        Ok(status) => {
            let text = format!("exit code: {}", status.code);
            let error = Error::new(diag::Code::Unknown, text).exit_code(status.code);
            ExitMessage {
                code: status.code as u32,
                error: Some(to_rpc_status(&error)),
            }
        }
        Err(error) => failure(error.into()),
    }
}

/// The end of a process that has no exit code.
fn failure(error: Error) -> ExitMessage {
    ExitMessage {
        code: UNKNOWN_EXIT_CODE,
        error: Some(to_rpc_status(&error)),
    }
}

async fn pass_input(
    mut pieces: mpsc::Receiver<Bytes>,
    mut pipe: pipe::Sender,
    released: CancellationToken,
) {
    let pass = async {
        while let Some(piece) = pieces.recv().await {
            if pipe.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = pass => {}
        () = released.cancelled() => {}
    }
}

/// The streams of a process: those asked for as pipes, the others as nothing.
fn open_streams(init: &InitMessage) -> diag::Result<(ProcessIo, Streams)> {
    let has = |fd: u32| init.fds.contains(&fd);
    let mut streams = Streams {
        input: None,
        outputs: Vec::new(),
    };
    let mut stdin = None;
    if has(0) {
        let (theirs, ours) = pipe()?;
        streams.input = Some(pipe::Sender::from_owned_fd(ours)?);
        stdin = Some(theirs);
    }
    let mut output = |fd: u32| -> diag::Result<OwnedFd> {
        if !has(fd) {
            let null = std::fs::File::options().write(true).open("/dev/null")?;
            return Ok(null.into());
        }
        let (ours, theirs) = pipe()?;
        let ours = pipe::Receiver::from_owned_fd(ours)?;
        streams.outputs.push((fd, ours));
        Ok(theirs)
    };
    let io = if init.tty {
        let output = output(1)?;
        ProcessIo::Terminal(Terminal {
            stdin,
            output,
            size: None,
        })
    } else {
        let (stdout, stderr) = (output(1)?, output(2)?);
        ProcessIo::Stdio(Stdio {
            stdin,
            stdout,
            stderr,
        })
    };
    Ok((io, streams))
}

fn specification(init: InitMessage) -> Result<ContainerProcess, Status> {
    let meta = init.meta.unwrap_or_default();
    let secret = |secret: proto::pb::SecretEnv| llb::SecretEnv {
        id: secret.id,
        name: secret.name,
        optional: secret.optional,
    };
    let insecure = match init.security {
        0 => false,
        1 => true,
        other => {
            let text = format!("unknown security mode {other}");
            return Err(Status::invalid_argument(text));
        }
    };
    Ok(ContainerProcess {
        args: meta.args,
        env: meta.env,
        secret_env: init.secretenv.into_iter().map(secret).collect(),
        user: meta.user,
        cwd: meta.cwd,
        tty: init.tty,
        insecure,
        remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
    })
}

/// The number of a signal by its name without `SIG`.
fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    /// The first and the last that programs are free to use.
    const REALTIME: (i32, i32) = (34, 64);
    if let Some(at) = NAMES.iter().position(|known| *known == name) {
        return i32::try_from(at + 1).ok();
    }
    let offset = |text: &str| match text {
        "" => Some(0),
        text => text.parse::<u8>().ok().map(i32::from),
    };
    let number = match name {
        "IOT" => 6,
        "CLD" => 17,
        "POLL" => 29,
        _ => match name.split_at_checked(5) {
            Some(("RTMIN", rest)) => REALTIME.0 + offset(rest.trim_start_matches('+'))?,
            Some(("RTMAX", rest)) => REALTIME.1 - offset(rest.trim_start_matches('-'))?,
            _ => return None,
        },
    };
    let known = (1..32).contains(&number) || (REALTIME.0..=REALTIME.1).contains(&number);
    known.then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name() {
        let numbers = [
            ("HUP", 1),
            ("KILL", 9),
            ("TERM", 15),
            ("WINCH", 28),
            ("RTMIN", 34),
            ("RTMIN+3", 37),
            ("RTMAX-2", 62),
        ];
        for (name, number) in numbers {
            assert_eq!(signal_number(name), Some(number), "{name}");
        }
        for name in ["", "SIGHUP", "hup", "RTMIN+40", "RTMAX-99", "9"] {
            assert_eq!(signal_number(name), None, "{name}");
        }
    }

    #[test]
    fn an_exit_code_travels_with_its_error() {
        let exited = |code| ExitStatus {
            code,
            ..ExitStatus::default()
        };
        assert_eq!(exit_message(Ok(exited(0))), ExitMessage::default());
        let message = exit_message(Ok(exited(7)));
        assert_eq!(message.code, 7);
        assert_eq!(message.error.unwrap().message, "exit code: 7");
        let missing = exit_message(Err(ExecError::NotFoundInPath("nope".into())));
        assert_eq!(missing.code, UNKNOWN_EXIT_CODE);
        assert!(missing.error.unwrap().message.contains("nope"));
    }
}
