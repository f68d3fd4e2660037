//! Gets the clients: from Debian, and one installer for each other registry. What is pinned beside the programs is
//! installed once, and again only when that changes.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    thread,
};

use sandbox::packages;

use crate::{
    catalogue::{CLIENTS, DEBIAN, Origin},
    support::sandbox_binary,
};

/// Where things are.
pub(crate) struct Tools {
    /// What was installed.
    pub(crate) folder: PathBuf,
    /// The programs' sources.
    pub(crate) source: PathBuf,
    /// The sandbox's binary.
    pub(crate) sandbox: &'static str,
}

/// All clients, there from now on.
pub(crate) fn tools() -> &'static Tools {
    static TOOLS: OnceLock<Tools> = OnceLock::new();
    TOOLS.get_or_init(|| {
        packages::require_root().unwrap();
        let tools = Tools {
            folder: Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients"),
            source: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients"),
            sandbox: sandbox_binary(),
        };
        fs::create_dir_all(&tools.folder).unwrap();
        tools.install();
        tools
    })
}

impl Tools {
    fn install(&self) {
        // Python and what else is Debian's comes first.
        debian();
        for (command, what) in [("go", "Go 1.26"), ("npm", "Node.js with npm"), ("javac", "a JDK"), ("mvn", "Maven")] {
            assert!(packages::find(command).is_some(), "the matrix of clients needs {what} on the PATH");
        }
        thread::scope(|scope| {
            let installers = [Self::python, Self::go, Self::javascript, Self::java, Self::restic];
            let started = installers.map(|installer| scope.spawn(move || installer(self)));
            for installer in started {
                installer.join().unwrap();
            }
        });
    }

    /// A folder that is made by `make` once for what `inputs` (files below the sources) say.
    fn once(&self, name: &str, inputs: &[PathBuf], make: impl FnOnce(&Path)) {
        let folder = self.folder.join(name);
        let wanted = inputs.iter().map(|input| fs::read_to_string(input).unwrap()).collect::<String>();
        let done = self.folder.join(format!("{name}.done"));
        if fs::read_to_string(&done).is_ok_and(|made| made == wanted) {
            return;
        }
        fs::remove_dir_all(&folder).ok();
        fs::create_dir_all(&folder).unwrap();
        make(&folder);
        fs::write(done, wanted).unwrap();
    }

    /// One environment for each file of requirements.
    fn python(&self) {
        for file in files(&self.source.join("python/requirements")) {
            let name = file.file_stem().unwrap().to_str().unwrap();
            self.once(name, std::slice::from_ref(&file), |folder| {
                run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(folder));
                let install = [
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--no-compile",
                    "--no-deps",
                    "-r",
                ];
                run(Command::new(folder.join("bin/python")).args(install).arg(&file));
            });
        }
    }

    fn go(&self) {
        let source = self.source.join("go");
        let mut inputs = files(&source);
        for program in folders(&source) {
            inputs.extend(files(&program));
        }
        self.once("go", &inputs, |folder| {
            let mut build = Command::new("go");
            build.args(["build", "-o"]).arg(folder.join("")).arg("./...").current_dir(&source);
            run(build.env("GOFLAGS", "-mod=readonly"));
        });
    }

    fn javascript(&self) {
        let inputs = files(&self.source.join("javascript"));
        self.once("javascript", &inputs, |folder| {
            copy(&inputs, folder);
            run(Command::new("npm").args(["ci", "--silent", "--ignore-scripts"]).current_dir(folder));
        });
    }

    fn java(&self) {
        const COPY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";
        let inputs = files(&self.source.join("java"));
        self.once("java", &inputs, |folder| {
            copy(&inputs, folder);
            let copy = ["-q", "-B", COPY, "-DincludeScope=runtime", "-DoutputDirectory=lib"];
            run(Command::new("mvn").args(copy).current_dir(folder));
            let compile = ["-d", "classes", "-cp", "lib/*", "Rounds.java", "V1.java", "V2.java"];
            run(Command::new("javac").args(compile).current_dir(folder));
        });
    }

    /// A repository to be read.
    fn restic(&self) {
        self.once("restic", &[], |folder| {
            let mut init = Command::new("/usr/bin/restic");
            init.args(["init", "--quiet", "--no-cache", "-r"]).arg(folder).env("RESTIC_PASSWORD", "sandbox");
            run(&mut init);
        });
    }

    /// The files of restic's repository, by their paths in it.
    pub(crate) fn repository(&self) -> Vec<(String, Vec<u8>)> {
        let root = self.folder.join("restic");
        let mut found = Vec::new();
        let mut left = vec![root.clone()];
        while let Some(folder) = left.pop() {
            left.extend(folders(&folder));
            for file in files(&folder) {
                let name = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read(file).unwrap()));
            }
        }
        found
    }

    /// A client's version.
    pub(crate) fn version(&self, origin: Origin) -> String {
        let read = |file: &str| fs::read_to_string(self.source.join(file)).unwrap();
        let found = match origin {
            Origin::Python(file, package) => {
                after(&read(&format!("python/requirements/{file}.txt")), &format!("\n{package}==")).to_owned()
            }
            Origin::Go(module) => after(&read("go/go.mod"), &format!("\t{module} v")).to_owned(),
            Origin::Npm(package) => after(&read("javascript/package.json"), &format!("\"{package}\": \"")).to_owned(),
            Origin::Maven(artifact) => {
                let pom = read("java/pom.xml");
                let (_, rest) = pom.split_once(&format!("<artifactId>{artifact}</artifactId>")).unwrap();
                after(rest, "<version>").to_owned()
            }
            Origin::Cargo(name) => {
                let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
                after(&lock, &format!("name = \"{name}\"\nversion = \"")).to_owned()
            }
            Origin::Debian(package) => debian_version(package).unwrap(),
        };
        assert!(!found.is_empty(), "{origin:?}");
        found
    }
}

/// The word that follows, up to what ends a version.
fn after<'a>(text: &'a str, what: &str) -> &'a str {
    let at = match text.find(what) {
        Some(at) => at + what.len(),
        // The first line has none before it.
        None if what.starts_with('\n') && text.starts_with(&what[1..]) => what.len() - 1,
        None => panic!("{what} is not pinned"),
    };
    text[at..].split(['\n', '"', '<', ' ']).next().unwrap_or_default()
}

fn debian_version(package: &str) -> Option<String> {
    let mut query = Command::new("dpkg-query");
    let output = query.args(["-W", "-f", "${db:Status-Status} ${Version}", package]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.strip_prefix("installed ").map(str::to_owned)
}

/// Installs the packages that are missing.
fn debian() {
    let clients = CLIENTS.iter().filter_map(|client| match client.origin {
        Origin::Debian(package) => Some(package),
        _ => None,
    });
    let missing = DEBIAN.iter().copied().chain(clients).filter(|package| debian_version(package).is_none());
    let missing = missing.collect::<Vec<_>>();
    if missing.is_empty() {
        return;
    }
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.args(["-qq", "-o", "DPkg::Lock::Timeout=300"]).env("DEBIAN_FRONTEND", "noninteractive");
        apt
    };
    run(apt().arg("update"));
    run(apt().args(["install", "--yes", "--no-install-recommends"]).args(missing));
}

fn run(command: &mut Command) {
    println!("{command:?}");
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (said, also) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{said}{also}", output.status);
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    entries.sort();
    entries
}

fn files(folder: &Path) -> Vec<PathBuf> {
    entries(folder).into_iter().filter(|path| path.is_file()).collect()
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    entries(folder).into_iter().filter(|path| path.is_dir()).collect()
}

fn copy(files: &[PathBuf], folder: &Path) {
    for file in files {
        fs::copy(file, folder.join(file.file_name().unwrap())).unwrap();
    }
}
