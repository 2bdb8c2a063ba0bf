//! Where the bytes of a serial port or a console port lead on the host.

use std::path::PathBuf;

use crate::options::Options;
use crate::{ByteSize, ConfigError};

/// Where a stream of bytes leads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StreamSink {
    /// The terminal, or whatever standard input and output are.
    #[default]
    Stdio,
    /// Nowhere.
    Null,
    /// To a file, appended.
    File {
        /// The file.
        path: PathBuf,
        /// Bytes after which output is dropped and counted.
        limit: u64,
    },
    /// To whoever connects to a Unix socket.
    Socket {
        /// The socket's path.
        path: PathBuf,
    },
}

const DEFAULT_FILE_LIMIT: u64 = 64 << 20;

/// Takes the sink off `options`, where it is the first part.
pub(crate) fn sink(options: &mut Options) -> Result<StreamSink, ConfigError> {
    let first = options.first().ok_or_else(|| options.refused())?;
    let path = |path: &str| if path.is_empty() { Err(options.refused()) } else { Ok(PathBuf::from(path)) };
    match first.split_once('=') {
        None if first == "stdio" => Ok(StreamSink::Stdio),
        None if first == "null" => Ok(StreamSink::Null),
        Some(("socket", rest)) => Ok(StreamSink::Socket { path: path(rest)? }),
        Some(("file", rest)) => {
            let path = path(rest)?;
            let limit = options.number::<ByteSize>("limit", |_| true)?;
            Ok(StreamSink::File { path, limit: limit.map_or(DEFAULT_FILE_LIMIT, |limit| limit.0) })
        }
        _ => Err(options.refused()),
    }
}
