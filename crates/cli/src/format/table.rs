//! Text in columns, laid out as Go's `text/tabwriter` does: a cell ends with a tab, and a column is
//! as wide as the widest cell of the lines that follow each other and have it.

/// Collects lines and lays them out.
pub(crate) struct TabWriter {
    width_min: usize,
    tab_width: usize,
    padding: usize,
    pad: char,
    /// Lines of cells; the last cell of a line is not part of a column.
    lines: Vec<Vec<String>>,
}

impl TabWriter {
    /// Columns of at least `width_min`, `padding` wider than their widest cell, filled with `pad`.
    /// With tabs for filling, widths are multiples of `tab_width`.
    pub(crate) fn new(width_min: usize, tab_width: usize, padding: usize, pad: char) -> Self {
        TabWriter {
            width_min,
            tab_width,
            padding,
            pad,
            lines: vec![vec![String::new()]],
        }
    }

    /// For `inspect`: one space between columns.
    pub(crate) fn spaced() -> Self {
        TabWriter::new(0, 0, 1, ' ')
    }

    /// For tables with a header.
    pub(crate) fn table() -> Self {
        TabWriter::new(10, 1, 3, ' ')
    }

    /// For lists filled with tabs.
    pub(crate) fn tabbed() -> Self {
        TabWriter::new(1, 8, 1, '\t')
    }

    /// Adds text with its tabs and line ends.
    pub(crate) fn write(&mut self, text: &str) {
        for c in text.chars() {
            let Some(line) = self.lines.last_mut() else {
                return;
            };
            match c {
                '\t' => line.push(String::new()),
                '\n' => self.lines.push(vec![String::new()]),
                c => {
                    if let Some(cell) = line.last_mut() {
                        cell.push(c);
                    }
                }
            }
        }
    }

    /// Adds a line.
    pub(crate) fn line(&mut self, text: impl AsRef<str>) {
        self.write(text.as_ref());
        self.write("\n");
    }

    /// The text laid out.
    pub(crate) fn finish(self) -> String {
        let mut out = String::new();
        let mut widths = Vec::new();
        self.block(&mut out, &mut widths, 0, self.lines.len());
        out
    }

    /// Lays out lines that have the columns of `widths` in common.
    fn block(&self, out: &mut String, widths: &mut Vec<usize>, from: usize, to: usize) {
        let column = widths.len();
        let (mut first, mut this) = (from, from);
        while this < to {
            if column + 1 >= self.lines[this].len() {
                this += 1;
                continue;
            }
            self.print(out, widths, first, this);
            first = this;
            let mut width = self.width_min;
            while this < to && column + 1 < self.lines[this].len() {
                let cell = self.lines[this][column].chars().count();
                width = width.max(cell + self.padding);
                this += 1;
            }
            widths.push(width);
            self.block(out, widths, first, this);
            widths.pop();
            first = this;
        }
        self.print(out, widths, first, to);
    }

    fn print(&self, out: &mut String, widths: &[usize], from: usize, to: usize) {
        for index in from..to {
            for (column, cell) in self.lines[index].iter().enumerate() {
                out.push_str(cell);
                if let Some(width) = widths.get(column) {
                    self.fill(out, cell.chars().count(), *width);
                }
            }
            // The last line is what follows the last line end.
            if index + 1 < self.lines.len() {
                out.push('\n');
            }
        }
    }

    fn fill(&self, out: &mut String, text: usize, cell: usize) {
        let count = if self.pad == '\t' {
            let cell = cell.div_ceil(self.tab_width) * self.tab_width;
            (cell - text).div_ceil(self.tab_width)
        } else {
            cell.saturating_sub(text)
        };
        out.extend(std::iter::repeat_n(self.pad, count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid(mut writer: TabWriter, text: &str) -> String {
        writer.write(text);
        writer.finish()
    }

    #[test]
    fn a_column_is_as_wide_as_its_widest_cell_of_adjacent_lines() {
        assert_eq!(
            laid(
                TabWriter::spaced(),
                "Name:\tx\nDriver:\ty\n\nNodes:\nName:\tz\n"
            ),
            "Name:   x\nDriver: y\n\nNodes:\nName: z\n"
        );
        assert_eq!(
            laid(TabWriter::spaced(), "Labels:\n\ta:\t1\n\tlong:\t2\n"),
            "Labels:\n a:    1\n long: 2\n"
        );
    }

    #[test]
    fn tables_have_wide_columns_and_lists_have_tabs() {
        assert_eq!(
            laid(TabWriter::table(), "NAME\tSTATUS\nlonger-name\tok\n"),
            "NAME          STATUS\nlonger-name   ok\n"
        );
        assert_eq!(
            laid(TabWriter::tabbed(), "Reclaimable:\t1B\nTotal:\t2B\n"),
            "Reclaimable:\t1B\nTotal:\t\t2B\n"
        );
    }
}
