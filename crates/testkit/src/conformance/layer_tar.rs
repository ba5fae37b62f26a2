//! A reader of tar archives for judging what builders write: ustar, PAX and GNU long names. It is
//! not the product's own, so that neither hides the other's faults.

use std::collections::BTreeMap;

const BLOCK: usize = 512;

/// One entry.
#[derive(Clone, Debug, Default)]
pub struct TarEntry {
    /// Name as written.
    pub path: String,
    /// Type byte: `0` file, `1` hard link, `2` symbolic link, `3` char, `4` block, `5` folder, `6` fifo.
    pub kind: u8,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Target of a link.
    pub target: String,
    /// Major and minor number of a device.
    pub device: (u64, u64),
    /// Content of a file.
    pub data: Vec<u8>,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// All entries in order.
pub fn entries(bytes: &[u8]) -> Result<Vec<TarEntry>, String> {
    let mut found = Vec::new();
    let mut at = 0;
    let mut pax: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let (mut long_name, mut long_link) = (None, None);
    while let Some(header) = bytes.get(at..at + BLOCK) {
        at += BLOCK;
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        let kind = header[156];
        let mut size = number(&header[124..136])? as usize;
        if let Some(value) = pax.get("size").filter(|_| kind != b'x') {
            size = text(value)
                .parse()
                .map_err(|_| "a PAX size that is no number")?;
        }
        let data = bytes
            .get(at..at + size)
            .ok_or("the archive ends in an entry")?;
        at += size.div_ceil(BLOCK) * BLOCK;
        match kind {
            b'x' => {
                pax = records(data)?;
                continue;
            }
            b'g' => continue,
            b'L' => {
                long_name = Some(until_nul(data));
                continue;
            }
            b'K' => {
                long_link = Some(until_nul(data));
                continue;
            }
            _ => {}
        }
        let mut entry = from_header(header, data)?;
        if let Some(name) = long_name.take() {
            entry.path = name;
        }
        if let Some(name) = long_link.take() {
            entry.target = name;
        }
        apply(&mut entry, std::mem::take(&mut pax))?;
        found.push(entry);
    }
    Ok(found)
}

fn from_header(header: &[u8], data: &[u8]) -> Result<TarEntry, String> {
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    let is_ustar = &header[257..263] == b"ustar\0";
    let path = if is_ustar && !prefix.is_empty() {
        format!("{prefix}/{name}")
    } else {
        name
    };
    let kind = match header[156] {
        0 => b'0',
        kind => kind,
    };
    Ok(TarEntry {
        path,
        kind,
        mode: number(&header[100..108])? as u32 & 0o7777,
        uid: number(&header[108..116])?,
        gid: number(&header[116..124])?,
        mtime: number(&header[136..148])? as i64,
        target: until_nul(&header[157..257]),
        device: (number(&header[329..337])?, number(&header[337..345])?),
        data: data.to_vec(),
        xattrs: BTreeMap::new(),
    })
}

fn apply(entry: &mut TarEntry, pax: BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    for (key, value) in pax {
        let shown = text(&value);
        let bad = || format!("PAX record {key}={shown}");
        match key.as_str() {
            "path" => entry.path = shown,
            "linkpath" => entry.target = shown,
            "uid" => entry.uid = shown.parse().map_err(|_| bad())?,
            "gid" => entry.gid = shown.parse().map_err(|_| bad())?,
            "mtime" => {
                let whole = shown.split('.').next().unwrap_or_default();
                entry.mtime = whole.parse().map_err(|_| bad())?;
            }
            _ => {
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    entry.xattrs.insert(name.to_owned(), value);
                }
            }
        }
    }
    Ok(())
}

/// `LENGTH KEY=VALUE\n`, one after another.
fn records(mut data: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let mut found = BTreeMap::new();
    while !data.is_empty() {
        let bad = || "a PAX record that cannot be read".to_owned();
        let space = data.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let length: usize = text(&data[..space]).parse().map_err(|_| bad())?;
        let record = data.get(space + 1..length - 1).ok_or_else(bad)?;
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(bad)?;
        found.insert(text(&record[..equals]), record[equals + 1..].to_vec());
        data = &data[length..];
    }
    Ok(found)
}

/// Octal text, or GNU's big-endian binary.
fn number(field: &[u8]) -> Result<u64, String> {
    if field[0] & 0x80 != 0 {
        let mut value = u64::from(field[0] & 0x7f);
        for byte in &field[1..] {
            value = value << 8 | u64::from(*byte);
        }
        return Ok(value);
    }
    let shown = until_nul(field);
    let shown = shown.trim();
    if shown.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(shown, 8).map_err(|_| format!("`{shown}` in a header is not octal"))
}

fn until_nul(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0);
    text(&field[..end.unwrap_or(field.len())])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
