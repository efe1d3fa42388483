//! A whole mesh on one machine: pods are network namespaces, joined by a bridge, inside one
//! unprivileged user namespace. No root is needed, nothing outside is touched, and the kernel
//! cleans up when the test's process ends, however it ends.

use std::{
    env, fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::cache;

/// Set inside the namespace.
const INSIDE: &str = "OUTRIGGER_NETNS";
/// Mark of the proxies' own connections: only one uid is mapped here, so it cannot tell them.
pub const MARK: u32 = 1337;
/// The bridge's address, where what stands for the rest of the cluster listens.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The same in IPv6.
pub const NODE6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// What follows is done where the kernel has IPv6: tests of IPv4 run without it.
const IF_IPV6: &str = "[ ! -e /proc/net/if_inet6 ] ||";
/// Debian's uid and gid of `nobody` and `nogroup`.
const NOBODY: u32 = 65534;

/// Runs `test` inside namespaces of its own. `name` is the test's full name, by which the test
/// binary is started once more inside them.
///
/// # Panics
/// When the test fails, or user namespaces are forbidden here.
pub fn run(name: &str, test: impl FnOnce(&mut Mesh)) {
    if env::var_os(INSIDE).is_none() {
        let own = env::current_exe().expect("own path");
        return enter(name, Command::new("unshare"), &own);
    }
    let mut mesh = Mesh::new(name);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&mut mesh)));
    if let Err(panic) = outcome {
        mesh.print_logs();
        std::panic::resume_unwind(panic);
    }
}

/// The same as the user `nobody` (or as whoever runs the tests, when that is not root), which
/// shows that none of it needs root. Of the workspace's binaries the test has those in `binaries`.
///
/// # Panics
/// As [`run`].
pub fn run_as_nobody(name: &str, binaries: &[&str], test: impl FnOnce(&mut Mesh)) {
    let root = fs::metadata("/proc/self").is_ok_and(|own| owner(&own) == 0);
    if env::var_os(INSIDE).is_some() || !root {
        return run(name, test);
    }
    // The build folder may be closed to other users.
    let dir = tempfile::tempdir().expect("a folder");
    let open = |path: &Path| {
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(path, mode).expect("made readable");
    };
    let mut copies = vec![env::current_exe().expect("own path")];
    copies.extend(binaries.iter().map(|name| crate::bin(name)));
    for binary in &copies {
        let copy = dir.path().join(binary.file_name().expect("a file"));
        fs::copy(binary, &copy).expect("copied");
        open(&copy);
    }
    open(dir.path());
    let own = dir.path().join(copies[0].file_name().expect("a file"));
    let mut unshare = Command::new("setpriv");
    let id = |kind: &str| format!("--re{kind}id={NOBODY}");
    unshare
        .args([&id("u"), &id("g"), "--clear-groups", "unshare"])
        .current_dir("/")
        .env("TMPDIR", "/tmp")
        .env("OUTRIGGER_BIN_DIR", dir.path());
    enter(name, unshare, &own);
}

fn owner(file: &fs::Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::uid(file)
}

/// Starts the one test `name` of the test binary `own` again, inside new namespaces, and waits.
fn enter(name: &str, mut unshare: Command, own: &Path) {
    let name = name.split_once("::").map_or(name, |(_, rest)| rest);
    let status = unshare
        .args(["-Urnmpf", "--mount-proc", "--kill-child"])
        .arg(own)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare and setpriv (package util-linux)");
    assert!(
        status.success(),
        "{name} failed inside its namespaces; if they could not be made: user namespaces have to \
         be allowed (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces)"
    );
}

/// A node network with pods on it.
#[derive(Debug)]
pub struct Mesh {
    /// Files of this test.
    pub dir: PathBuf,
    pods: u8,
    processes: Vec<Process>,
}

/// A network namespace with an address.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub ip: Ipv4Addr,
    pub ip6: Ipv6Addr,
    dir: PathBuf,
}

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    pub name: String,
    child: Child,
    log: PathBuf,
}

fn sh(command: &str) {
    let output = Command::new("sh")
        .args(["-c", command])
        .env("PATH", path())
        .output()
        .expect("sh");
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// First what `tests/run` has put into its cache.
fn path() -> String {
    let own = env::var("PATH").unwrap_or_default();
    let cache = cache().display().to_string();
    format!("{cache}/programs/bin:{cache}/venv/bin:{own}:/usr/local/sbin:/usr/sbin:/sbin")
}

impl Mesh {
    fn new(name: &str) -> Self {
        let short = name.rsplit("::").next().unwrap_or(name);
        let dir = env::temp_dir().join(format!("outrigger-{short}-{}", random()));
        fs::create_dir_all(&dir).expect("a folder for the test's files");
        sh("mount -t tmpfs tmpfs /run && mkdir -p /run/netns");
        // An address of its own: otherwise the bridge takes the lowest of its ports', which changes
        // under pods that have learnt it when another pod comes.
        sh("ip link set lo up && ip link add br0 address 02:00:0a:4d:00:01 type bridge");
        sh("ip link set br0 up");
        sh(&format!("ip addr add {NODE}/16 dev br0"));
        sh(&format!("{IF_IPV6} ip addr add {NODE6}/64 dev br0 nodad"));
        let hosts = dir.join("hosts");
        fs::write(&hosts, "127.0.0.1 localhost\n::1 localhost\n").expect("written");
        sh(&format!("mount --bind {} /etc/hosts", hosts.display()));
        Self {
            dir,
            pods: 0,
            processes: Vec::new(),
        }
    }

    /// A new pod.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn pod(&mut self, name: &str) -> Pod {
        self.pods += 1;
        let ip = Ipv4Addr::new(10, 77, 1, self.pods);
        let ip6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, self.pods.into());
        let veth = format!("v{}", self.pods);
        sh(&format!(
            "ip netns add {name} && \
             ip link add {veth} mtu 9000 type veth peer name eth0 mtu 9000 netns {name} && \
             ip link set {veth} master br0 up"
        ));
        let pod = Pod {
            name: name.to_owned(),
            ip,
            ip6,
            dir: self.dir.clone(),
        };
        let inside = format!(
            "ip link set lo up && ip addr add {ip}/16 dev eth0 && ip link set eth0 up && \
             ip route add default via {NODE} && ( {IF_IPV6} \
             {{ ip addr add {ip6}/64 dev eth0 nodad && ip -6 route add default via {NODE6}; }} )"
        );
        let (code, out, err) = pod.sh(&inside);
        assert_eq!(code, Some(0), "{inside}: {out}{err}");
        pod
    }

    /// Makes `name` an address for programs in every pod and on the node.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn host(&self, name: &str, address: IpAddr) {
        let hosts = self.dir.join("hosts");
        let mut text = fs::read_to_string(&hosts).expect("written before");
        text.push_str(&format!("{address} {name}\n"));
        // In place: the file is what is mounted.
        fs::write(&hosts, text).expect("written");
    }

    /// Makes a program of this machine missing, for this test alone.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn hide(&self, program: &str) {
        sh(&format!(
            "for at in $(which -a {program}); do mount --bind /dev/null $at; done"
        ));
    }

    /// Starts a program on the node.
    pub fn spawn(&mut self, name: &str, command: Command) {
        let process = start(&self.dir, name, command);
        self.processes.push(process);
    }

    /// Starts a program in a pod.
    pub fn spawn_in(&mut self, pod: &Pod, name: &str, command: &Command) {
        let name = format!("{}-{name}", pod.name);
        let process = start(&self.dir, &name, pod.wrap(command));
        self.processes.push(process);
    }

    /// Sends a signal to a program started under `name` and forgets it.
    ///
    /// # Panics
    /// When there is none.
    pub fn signal(&mut self, name: &str, signal: &str) -> Process {
        let at = self.processes.iter().position(|p| p.name == name);
        let process = self.processes.remove(at.expect(name));
        sh(&format!("kill -{signal} {}", process.child.id()));
        process
    }

    /// What a program has printed so far.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(format!("{name}.log"))).unwrap_or_default()
    }

    fn print_logs(&self) {
        let mut files: Vec<_> = fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "log"))
            .collect();
        files.sort();
        for file in files {
            let text = fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let from = lines.len().saturating_sub(60);
            let mut out = std::io::stderr().lock();
            let _shown = writeln!(out, "--- {}", file.display());
            for line in lines.get(from..).unwrap_or_default() {
                let _shown = writeln!(out, "{line}");
            }
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.processes.clear();
        if !std::thread::panicking() {
            let _gone = fs::remove_dir_all(&self.dir);
        }
    }
}

fn random() -> u32 {
    rand::random()
}

fn start(dir: &Path, name: &str, mut command: Command) -> Process {
    let log = dir.join(format!("{name}.log"));
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .expect("a log file");
    let child = command
        .env("PATH", path())
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("a second handle"))
        .stderr(file)
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    Process {
        name: name.to_owned(),
        child,
        log,
    }
}

impl Process {
    /// Waits for the program to end by itself: its exit code and what it printed.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait(&mut self, limit: Duration) -> (Option<i32>, String) {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                let text = fs::read_to_string(&self.log).unwrap_or_default();
                return (status.code(), text);
            }
            assert!(Instant::now() < until, "{} has not ended", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Pod {
    fn wrap(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(command.get_current_dir().unwrap_or(&self.dir))
            .env("PATH", path());
        for (key, value) in command.get_envs() {
            if let Some(value) = value {
                inside.env(key, value);
            }
        }
        inside
    }

    /// Runs a program in the pod to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn output(&self, command: &Command) -> Output {
        self.wrap(command).output().expect("started")
    }

    /// Runs a shell line in the pod: exit code, standard output, standard error.
    #[must_use]
    pub fn sh(&self, line: &str) -> (Option<i32>, String, String) {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        texts(&self.output(&command))
    }

    /// Puts the redirect rules in force; returns what `outrigger-proxy init` printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn redirect(&self, more: &[&str]) -> String {
        let (code, out, err) = self.init(&["--proxy-mark", &MARK.to_string()], more);
        assert_eq!(code, Some(0), "init in {}: {out}{err}", self.name);
        out
    }

    /// Runs `outrigger-proxy init` with these words: exit code, standard output, standard error.
    #[must_use]
    pub fn init(&self, first: &[&str], more: &[&str]) -> (Option<i32>, String, String) {
        let mut init = Command::new(crate::bin("outrigger-proxy"));
        init.arg("init").args(first).args(more);
        texts(&self.output(&init))
    }
}

/// Exit code, standard output and standard error.
#[must_use]
pub fn texts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Tries until `attempt` gives something.
///
/// # Panics
/// After `limit`, saying `what` was waited for.
pub fn until<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < end, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Declares a test that runs inside namespaces of its own.
#[macro_export]
macro_rules! mesh_test {
    ($(#[$meta:meta])* $name:ident, $mesh:ident, $body:block) => {
        $(#[$meta])*
        #[test]
        fn $name() {
            let name = concat!(module_path!(), "::", stringify!($name));
            $crate::netns::run(name, |$mesh: &mut $crate::netns::Mesh| $body);
        }
    };
}
