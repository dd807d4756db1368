//! A virtual machine from the command line: boots a prepared kernel with its console on standard output.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rouse_vmm::devices::virtio::{DeviceConfig, Disk, Vsock};
use rouse_vmm::kernel::Kernel;
use rouse_vmm::{Config, Ended, Machine, MemorySize, VcpuCount, host};

/// Runs a Linux kernel and rouse-guest in a virtual machine
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tells whether this host can run virtual machines
    Check,
    /// A VMM that waits for orders, started by its supervisor
    #[command(hide = true)]
    Vmm {
        /// User of the host
        uid: u32,
        /// Group of the host
        gid: u32,
    },
    /// Boots a prepared kernel, and ends with its machine
    Run {
        /// The directory that `rouse kernel import` made
        directory: PathBuf,
        /// Memory in MiB
        #[arg(long, default_value_t = 256)]
        memory: u32,
        /// Processors
        #[arg(long, default_value_t = 1)]
        cpus: u8,
        /// What is added to the kernel's command line
        #[arg(long, default_value = "quiet")]
        append: String,
        /// An image, and where the guest mounts it: `/=root.erofs`
        #[arg(long, value_name = "PLACE=FILE", value_parser = disk)]
        disk: Vec<Disk>,
        /// Where the guest's connections lead to: a directory with a Unix socket for each port
        #[arg(long, value_name = "DIR")]
        sockets: Option<PathBuf>,
    },
}

fn disk(text: &str) -> Result<Disk, String> {
    let (name, image) = text
        .split_once('=')
        .ok_or_else(|| "a disk is given as PLACE=FILE".to_owned())?;
    Ok(Disk {
        name: name.to_owned(),
        image: image.into(),
    })
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rouse-vmm: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Check => {
            host::usable()?;
            println!("this host can run virtual machines");
        }
        Command::Vmm { uid, gid } => return Ok(rouse_vmm::zygote::vmm_main(uid, gid)),
        Command::Run {
            directory,
            memory,
            cpus,
            append,
            disk,
            sockets,
        } => {
            let config = Config {
                memory: MemorySize::mib(memory)?,
                vcpus: VcpuCount::new(cpus)?,
                command_line: append,
                devices: DeviceConfig {
                    disks: disk,
                    vsock: sockets.map(|directory| Vsock { directory }),
                    ..DeviceConfig::default()
                },
            };
            let kernel = Kernel::open(&directory)?;
            let machine = Machine::boot(&config, &kernel, Box::new(std::io::stdout()))?;
            let devices = machine.devices();
            let ended = machine.run()?;
            for violations in devices.violations() {
                if let Some(last) = violations.last() {
                    let (count, device) = (violations.count(), violations.device());
                    eprintln!(
                        "rouse-vmm: the guest broke the rules of its {device} {count} times: {last}"
                    );
                }
            }
            if ended != Ended::Off {
                eprintln!("rouse-vmm: the machine was not switched off: {ended:?}");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
