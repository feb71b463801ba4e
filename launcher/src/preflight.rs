//! Everything that can be refused before a process starts or a weight is read: address, interpreter, model, memory.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use penstock_router::environment;
use penstock_router::server::{self, ListenError};
use tracing::warn;

use crate::args::{AllReduce, Cli, Device, ShardingArgs};
use crate::checkpoint::{self, Checkpoint};
use crate::failure::Failure;
use crate::memory;
use crate::sizing::{self, Machine, Sizes};
use crate::source::{Located, Source};

/// Prints where the shard's package lies; `-P` keeps the working directory from shadowing it.
const FIND_PACKAGE: &str = "import importlib.util as u; s = u.find_spec('penstock_server'); print(s.submodule_search_locations[0] if s else '')";

/// What is known before the model is looked at.
#[derive(Debug)]
pub(crate) struct Early {
    pub(crate) address: SocketAddr,
    pub(crate) python: PathBuf,
    pub(crate) source: Source,
}

/// What the checks found out.
#[derive(Debug)]
pub(crate) struct Preflight {
    pub(crate) address: SocketAddr,
    pub(crate) python: PathBuf,
    pub(crate) model_name: Option<String>,
    pub(crate) model_sha: Option<String>,
    pub(crate) tokenizer_path: Option<PathBuf>,
    pub(crate) model: Checkpoint,
    pub(crate) num_ranks: u32,
    pub(crate) cuda: bool,
    pub(crate) sizes: Sizes,
}

/// Runs the checks that need no model, the cheapest first.
pub(crate) fn check_early(cli: &Cli) -> Result<Early, Failure> {
    check_model_is_named(cli)?;
    cli.tgi.check()?;
    let address = free_address(&cli.http.hostname, cli.http.port)?;
    let python = find_python(cli.python.python.as_deref())?;
    let source = match cli.model.model_id.as_deref() {
        Some(id) if checkpoint::looks_like_hub_id(id) && !Path::new(id).exists() => Source::Hub {
            model_id: id.to_owned(),
        },
        Some(folder) => {
            if let Some(revision) = &cli.model.revision {
                warn!(
                    "--revision {revision} has no effect: the local folder {folder} holds one revision"
                );
            }
            Source::Folder {
                folder: absolute(Path::new(folder))?,
                name: None,
            }
        }
        None => Source::Folder {
            folder: demo_folder(&python)?,
            name: Some("demo".to_owned()),
        },
    };
    Ok(Early {
        address,
        python,
        source,
    })
}

/// Checks the model and the machine.
pub(crate) fn check(cli: &Cli, early: Early, located: Located) -> Result<Preflight, Failure> {
    let Early {
        address, python, ..
    } = early;
    let model = checkpoint::inspect(
        &located.folder,
        located.tokenizer.as_deref(),
        cli.model.load_format,
    )?;
    let machine = machine(
        cli.sharding.device,
        cli.sharding.cuda_visible_devices.as_deref(),
    )?;
    if cli.sharding.all_reduce == AllReduce::Symmetric && !machine.cuda {
        return Err(Failure::Usage(
            "--all-reduce symmetric is for GPUs, and the shards compute on the CPU".to_owned(),
        ));
    }
    let num_ranks = num_ranks(&cli.sharding, &machine)?;
    let sizes = sizing::sizes(cli, &model, &machine, u64::from(num_ranks))?;
    Ok(Preflight {
        address,
        python,
        model_name: located.name,
        model_sha: located.commit,
        tokenizer_path: located.tokenizer,
        model,
        num_ranks,
        cuda: machine.cuda,
        sizes,
    })
}

/// The demo is for newcomers. Whoever set anything about a model and named none would take its answers for those of that
/// model.
fn check_model_is_named(cli: &Cli) -> Result<(), Failure> {
    if cli.model.model_id.is_some() {
        return Ok(());
    }
    let of_a_cloud = |name: &str| name == "HF_MODEL_ID" || name.starts_with("AIP_");
    let revision = cli.model.revision.as_ref();
    let flag = revision
        .map(|_| "--revision (REVISION)".to_owned())
        .or_else(|| {
            let flag = cli.tgi.model_setting()?;
            Some(format!("--{} ({})", flag.name, flag.variable()))
        });
    let tokenizer = cli.http.tokenizer_config_path.as_ref();
    let tokenizer = tokenizer.map(|_| "--tokenizer-config-path (TOKENIZER_CONFIG_PATH)".to_owned());
    match flag.or(tokenizer).or_else(|| environment::find(of_a_cloud)) {
        Some(setting) => Err(Failure::Usage(format!(
            "{setting} is set, but no model is named: give --model-id or set MODEL_ID to the model's folder or name on a hub (the \
             bundled demo is served only where nothing is said about a model)"
        ))),
        None => Ok(()),
    }
}

/// The router's address to listen on, with a free port where 0 was asked for.
fn free_address(hostname: &str, port: u16) -> Result<SocketAddr, Failure> {
    let address = server::address(hostname, port);
    TcpListener::bind(address)
        .and_then(|listener| listener.local_addr())
        .map_err(|source| Failure::Failed(ListenError { address, source }.to_string()))
}

/// The flag's interpreter, the one beside this program (a virtual environment), or the PATH's.
fn find_python(flag: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(python) = flag {
        return Ok(python.to_path_buf());
    }
    let program = own_path()?;
    let beside = ["python3", "python"].map(|name| program.with_file_name(name));
    Ok(beside
        .into_iter()
        .find(|python| python.is_file())
        .unwrap_or_else(|| PathBuf::from("python3")))
}

/// This program's file.
pub(crate) fn own_path() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|error| Failure::io("cannot find this program's own path", &error))
}

fn demo_folder(python: &Path) -> Result<PathBuf, Failure> {
    warn!("no --model-id: serving the bundled demo model, which only shows that everything works");
    let output = Command::new(python)
        .args(["-P", "-c", FIND_PACKAGE])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::io(format!("cannot run {}", python.display()), &error))?;
    let package = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if package.is_empty() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failure::Failed(format!(
            "{} does not have penstock_server; name one that has it with --python {reason}",
            python.display()
        )));
    }
    Ok(Path::new(&package).join("demo_model"))
}

fn absolute(folder: &Path) -> Result<PathBuf, Failure> {
    // Shards and router are told a path that does not depend on anybody's working directory; an absent folder keeps
    // the words of the user for the message.
    match folder.canonicalize() {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(folder.to_path_buf()),
        Err(error) => Err(Failure::Model(format!(
            "cannot read {}: {error}",
            folder.display()
        ))),
    }
}

fn machine(device: Device, visible: Option<&str>) -> Result<Machine, Failure> {
    let driver = Path::new("/dev/nvidiactl").exists()
        && !visible.is_some_and(|list| list.is_empty() || list == "-1");
    if device == Device::Cuda && !driver {
        return Err(Failure::Usage(
            "--device cuda, but there is no NVIDIA driver or no GPU is visible".to_owned(),
        ));
    }
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Ok(Machine {
        cuda: driver && device != Device::Cpu,
        // Affinity and control-group quota are in this number.
        cores: thread::available_parallelism()
            .map_or(1, NonZero::get)
            .try_into()
            .unwrap_or(1),
        bfloat16: flags
            .split_whitespace()
            .any(|flag| flag == "amx_bf16" || flag == "avx512_bf16"),
        memory: memory::available(),
    })
}

/// TGI's rules: `--num-shard`, else one where not sharded is asked for, else as many as GPUs are named, else one.
fn num_ranks(sharding: &ShardingArgs, machine: &Machine) -> Result<u32, Failure> {
    let named = sharding
        .cuda_visible_devices
        .as_deref()
        .filter(|_| machine.cuda)
        .map_or(1, |list| list.split(',').count());
    let named = named.clamp(1, 8).try_into().unwrap_or(1);
    match (sharding.sharded, sharding.num_shard) {
        (Some(true), Some(1)) => Err(Failure::Usage(
            "--sharded true contradicts --num-shard 1; leave one of them out".to_owned(),
        )),
        (_, Some(num_shard)) => Ok(num_shard),
        (Some(false), None) => Ok(1),
        (Some(true), None) if named == 1 => Err(Failure::Usage(
            "--sharded true, but CUDA_VISIBLE_DEVICES does not name two GPUs or more; give --num-shard"
                .to_owned(),
        )),
        (Some(true) | None, None) => Ok(named),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_taken_port_is_refused_by_its_number() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let text = free_address("127.0.0.1", port).unwrap_err().to_string();
        assert!(
            text.contains(&format!("port {port} on 127.0.0.1 is taken")),
            "{text}"
        );
    }

    #[test]
    fn a_name_becomes_an_address_and_port_0_a_free_one() {
        let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert!(free_address(own.trim(), 0).unwrap().ip().is_unspecified());
        for (hostname, ip) in [
            ("localhost", "127.0.0.1"),
            ("no..name", "0.0.0.0"),
            ("::1", "::1"),
            ("[::]", "::"),
        ] {
            let address = free_address(hostname, 0).unwrap();
            assert_eq!(address.ip().to_string(), ip);
            assert_ne!(address.port(), 0);
        }
        let text = free_address("203.0.113.7", 0).unwrap_err().to_string();
        assert!(text.contains("--hostname"), "{text}");
    }

    #[test]
    fn the_number_of_shards_follows_tgis_rules() {
        let machine = Machine {
            cuda: true,
            cores: 4,
            bfloat16: false,
            memory: None,
        };
        for (flags, expected) in [
            ("--cuda-visible-devices 0", Ok(1)),
            ("--cuda-visible-devices 0,1", Ok(2)),
            ("--cuda-visible-devices 0,1 --sharded true", Ok(2)),
            ("--cuda-visible-devices 0,1 --sharded false", Ok(1)),
            ("--sharded false --num-shard 2", Ok(2)),
            ("--sharded true --num-shard 2", Ok(2)),
            (
                "--sharded true --num-shard 1",
                Err("contradicts --num-shard 1"),
            ),
            (
                "--cuda-visible-devices 0 --sharded true",
                Err("give --num-shard"),
            ),
        ] {
            let arguments = ["launcher"].into_iter().chain(flags.split_whitespace());
            let cli = Cli::try_parse_from(arguments).unwrap();
            let found = num_ranks(&cli.sharding, &machine).map_err(|error| error.to_string());
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{flags}"),
                (Err(text), Err(words)) => assert!(text.contains(words), "{text}"),
                (found, _) => panic!("{flags}: {found:?}"),
            }
        }
    }

    #[test]
    fn the_flag_names_the_interpreter() {
        assert_eq!(
            find_python(Some(Path::new("/x/python"))).unwrap(),
            Path::new("/x/python")
        );
    }
}
