//! `rouse image`: the disks that microVMs have.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rouse_vmm::image;

use crate::output::error::Outcome;
use crate::output::print_line;

/// Makes images for microVMs
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ImageCommand {
    /// Makes an image of a root file system: of this host's programs and libraries, if nothing else is given
    Build {
        /// The image to make; it replaces what is there
        image: PathBuf,
        /// Of a directory
        #[arg(long, value_name = "DIR", conflicts_with = "oci")]
        directory: Option<PathBuf>,
        /// Of an OCI layout, as `skopeo copy docker://debian oci:DIR` makes it
        #[arg(long, value_name = "DIR")]
        oci: Option<PathBuf>,
    },
}

/// Runs the command.
pub fn run(args: &ImageArgs) -> Outcome {
    let ImageCommand::Build {
        image,
        directory,
        oci,
    } = &args.command;
    build(image, directory.as_deref(), oci.as_deref())?;
    let size = std::fs::metadata(image)?.len();
    print_line(format_args!("{}: {} MiB", image.display(), size >> 20))?;
    Ok(ExitCode::SUCCESS)
}

fn build(
    image: &Path,
    directory: Option<&Path>,
    oci: Option<&Path>,
) -> Result<(), image::ImageError> {
    match (directory, oci) {
        (Some(directory), _) => image::build(directory, image),
        (None, Some(layout)) => image::oci::build_layout(layout, image),
        (None, None) => image::host::build(image),
    }
}
