//! Panels as SVG: what Grafana shows, near enough for a page of documentation. Knows charts, and neither Prometheus nor
//! tcpwatch.

use anyhow::{Context as _, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

/// Pixels of a column and of a row of Grafana's grid of 24 columns.
const CELL: (u32, u32) = (50, 32);
const HEADING: u32 = 40;
/// Series that a legend names.
const NAMED: usize = 6;
const PAPER: RGBColor = RGBColor(17, 18, 23);
const PANEL: RGBColor = RGBColor(24, 27, 31);
const INK: RGBColor = RGBColor(204, 204, 220);
const FAINT: RGBColor = RGBColor(60, 64, 72);
const COLOURS: [RGBColor; 10] = [
    RGBColor(115, 191, 105),
    RGBColor(242, 204, 12),
    RGBColor(87, 148, 242),
    RGBColor(255, 152, 48),
    RGBColor(242, 73, 92),
    RGBColor(184, 119, 217),
    RGBColor(138, 184, 255),
    RGBColor(255, 203, 125),
    RGBColor(150, 217, 141),
    RGBColor(255, 115, 131),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A line of a chart.
pub(crate) struct Line {
    pub(crate) name: String,
    /// Time and value.
    pub(crate) points: Vec<(f64, f64)>,
}

/// What a panel shows.
pub(crate) enum Kind {
    Lines {
        lines: Vec<Line>,
        stacked: bool,
    },
    /// Big numbers with a name and a colour.
    Numbers(Vec<(String, f64, String)>),
    /// Rows by their upper edge, each with a count at each time.
    Heat(Vec<(f64, Vec<(f64, f64)>)>),
    /// A head and rows.
    Table(Vec<Vec<String>>),
    /// A heading of several panels, or words.
    Words,
}

/// A panel and its place on the grid.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) place: [u32; 4],
    pub(crate) kind: Kind,
}

/// The page of a dashboard.
pub(crate) fn page(title: &str, charts: &[Chart]) -> Result<String> {
    let rows = charts.iter().map(|chart| chart.place[1] + chart.place[3]).max().context("no panel")?;
    let size = (24 * CELL.0, HEADING + rows * CELL.1);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&PAPER)?;
        words(&root, title, (12, 8), 20, &INK)?;
        for chart in charts {
            let [x, y, w, h] = chart.place;
            let area =
                root.clone().shrink((x * CELL.0 + 3, HEADING + y * CELL.1 + 3), (w * CELL.0 - 6, h * CELL.1 - 6));
            self::chart(&area, chart).with_context(|| format!("drawing {}", chart.title))?;
        }
        root.present()?;
    }
    Ok(svg)
}

fn chart(area: &Area<'_>, chart: &Chart) -> Result<()> {
    let Kind::Words = chart.kind else {
        area.fill(&PANEL)?;
        words(area, &chart.title, (8, 6), 13, &INK)?;
        let inside = area.margin(26, 4, 4, 10);
        return match &chart.kind {
            Kind::Lines { lines, stacked } => self::lines(&inside, lines, *stacked, &chart.unit),
            Kind::Numbers(all) => numbers(&inside, all, &chart.unit),
            Kind::Heat(rows) => heat(&inside, rows),
            Kind::Table(rows) => table(&inside, rows),
            Kind::Words => Ok(()),
        };
    };
    words(area, &chart.title, (8, 6), 15, &INK)
}

fn words(area: &Area<'_>, text: &str, at: (i32, i32), size: u32, colour: &RGBColor) -> Result<()> {
    area.draw(&Text::new(text.to_owned(), at, ("sans-serif", size).into_font().color(colour)))?;
    Ok(())
}

/// From the first to the last point, and from 0 or below to the largest.
fn ranges<'a>(all: impl Iterator<Item = &'a (f64, f64)>) -> Option<[f64; 4]> {
    let start = [f64::MAX, f64::MIN, 0.0, 0.0];
    let [from, to, low, high] =
        all.fold(start, |[from, to, low, high], (x, y)| [from.min(*x), to.max(*x), low.min(*y), high.max(*y)]);
    let high = if high <= low { low + 1.0 } else { high + (high - low) * 0.05 };
    (to > from).then_some([from, to, low, high])
}

fn lines(area: &Area<'_>, lines: &[Line], stacked: bool, unit: &str) -> Result<()> {
    let mut order: Vec<&Line> = lines.iter().collect();
    let most = |line: &Line| line.points.iter().map(|(_, y)| y.abs()).fold(0.0, f64::max);
    order.sort_by(|a, b| most(b).total_cmp(&most(a)));
    let mut sums: Vec<Line> = Vec::new();
    for line in &order {
        let below = |x: f64| {
            let last = sums.last().filter(|_| stacked)?;
            last.points.iter().find(|(other, _)| (other - x).abs() < 1e-6).map(|(_, y)| *y)
        };
        let points = line.points.iter().map(|(x, y)| (*x, y + below(*x).unwrap_or(0.0))).collect();
        sums.push(Line { name: line.name.clone(), points });
    }
    let Some([from, to, low, high]) = ranges(sums.iter().flat_map(|line| &line.points)) else {
        return words(area, "no data", (20, 20), 13, &FAINT);
    };
    let legend = order.len().min(NAMED) as u32 * 14 + 4;
    let (_, height) = area.dim_in_pixel();
    let (plot, names) = area.split_vertically(height.saturating_sub(legend));
    let mut chart = ChartBuilder::on(&plot)
        .x_label_area_size(18)
        .y_label_area_size(62)
        .build_cartesian_2d(0.0..(to - from), low..high)?;
    let style = ("sans-serif", 11).into_font().color(&INK);
    chart
        .configure_mesh()
        .x_labels(5)
        .y_labels(5)
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT.mix(0.5))
        .axis_style(FAINT)
        .label_style(style)
        .x_label_formatter(&|x| format!("{x:.0} s"))
        .y_label_formatter(&|y| shown(*y, unit))
        .draw()?;
    for (i, line) in sums.iter().enumerate().rev() {
        let colour = COLOURS[i % COLOURS.len()];
        let points = line.points.iter().map(|(x, y)| (x - from, *y));
        if stacked {
            chart.draw_series(AreaSeries::new(points.clone(), 0.0, PANEL))?;
            chart.draw_series(AreaSeries::new(points.clone(), 0.0, colour.mix(0.35)))?;
        }
        chart.draw_series(LineSeries::new(points, colour.stroke_width(1)))?;
    }
    for (i, line) in order.iter().take(NAMED).enumerate() {
        let y = i as i32 * 14;
        names.draw(&Rectangle::new([(12, y + 5), (24, y + 8)], COLOURS[i % COLOURS.len()].filled()))?;
        let last = line.points.last().map_or(0.0, |(_, y)| *y);
        let more = if i + 1 == NAMED && order.len() > NAMED {
            format!("   and {} more", order.len() - NAMED)
        } else {
            String::new()
        };
        words(&names, &format!("{}   {}{more}", line.name, shown(last, unit)), (30, y), 11, &INK)?;
    }
    Ok(())
}

fn numbers(area: &Area<'_>, all: &[(String, f64, String)], unit: &str) -> Result<()> {
    if all.is_empty() {
        return words(area, "none", (10, 18), 30, &COLOURS[0]);
    }
    let size = if all.len() == 1 { 30 } else { 14 };
    for (i, (name, value, colour)) in all.iter().take(4).enumerate() {
        let colour = match colour.as_str() {
            "red" => COLOURS[4],
            "orange" => COLOURS[3],
            "blue" => COLOURS[2],
            _ => COLOURS[0],
        };
        let text = if all.len() == 1 { shown(*value, unit) } else { format!("{} {name}", shown(*value, unit)) };
        words(area, &text, (10, 14 + i as i32 * 17), size, &colour)?;
    }
    Ok(())
}

fn heat(area: &Area<'_>, rows: &[(f64, Vec<(f64, f64)>)]) -> Result<()> {
    // Of cumulative buckets, what each has more than the one below.
    let mut cells = Vec::new();
    for (i, (edge, counts)) in rows.iter().enumerate() {
        for (x, count) in counts {
            let below = i.checked_sub(1).and_then(|i| rows.get(i));
            let below = below.and_then(|(_, counts)| counts.iter().find(|(other, _)| (other - x).abs() < 1e-6));
            cells.push((*x, i, *edge, count - below.map_or(0.0, |(_, count)| *count)));
        }
    }
    let most = cells.iter().map(|cell| cell.3).fold(0.0, f64::max);
    let used = |cell: &&(f64, usize, f64, f64)| cell.3 > 0.0;
    let bottom = cells.iter().filter(used).map(|cell| cell.1).min();
    let top = cells.iter().filter(used).map(|cell| cell.1).max();
    let (Some(bottom), Some(top)) = (bottom, top) else { return words(area, "no data", (20, 20), 13, &FAINT) };
    let Some([from, to, ..]) = ranges(rows.iter().flat_map(|(_, counts)| counts)) else { return Ok(()) };
    let step = (to - from) / rows[0].1.len().saturating_sub(1).max(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(18)
        .y_label_area_size(62)
        .build_cartesian_2d(0.0..(to - from + step), (bottom as f64)..(top as f64 + 1.0))?;
    let edge_of = |row: f64| {
        let edge = (row.round() as usize).checked_sub(1).and_then(|i| rows.get(i)).map_or(0.0, |(edge, _)| *edge);
        if edge >= 1.0 && rows[0].0 >= 1.0 { format!("{edge}") } else { shown(edge, "s") }
    };
    let style = ("sans-serif", 11).into_font().color(&INK);
    chart
        .configure_mesh()
        .disable_mesh()
        .x_labels(8)
        .y_labels((top - bottom + 2).min(10))
        .axis_style(FAINT)
        .label_style(style)
        .x_label_formatter(&|x| format!("{x:.0} s"))
        .y_label_formatter(&|y| edge_of(*y))
        .draw()?;
    chart.draw_series(cells.iter().filter(used).map(|(x, row, _, count)| {
        let share = (count / most).sqrt();
        let colour =
            RGBColor(255, (180.0 * (1.0 - share) + 60.0) as u8, (60.0 * (1.0 - share)) as u8).mix(0.25 + 0.75 * share);
        let (left, row) = (x - from, *row as f64);
        Rectangle::new([(left, row), (left + step * 0.95, row + 0.95)], colour.filled())
    }))?;
    Ok(())
}

fn table(area: &Area<'_>, rows: &[Vec<String>]) -> Result<()> {
    let (width, height) = area.dim_in_pixel();
    let columns = rows.first().map_or(1, Vec::len).max(1);
    // As wide as the widest, the last as wide as there is room.
    let mut at = vec![10; columns];
    for column in 1..columns {
        let widest = rows.iter().filter_map(|row| row.get(column - 1)).map(|cell| cell.chars().count()).max();
        at[column] = at[column - 1] + widest.unwrap_or(0).min(60) as i32 * 7 + 14;
    }
    for (i, row) in rows.iter().take((height / 17) as usize).enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let end = at.get(column + 1).copied().unwrap_or(width as i32);
            let room = (end - at[column]).max(0) as usize / 7;
            let text: String = cell.chars().take(room).collect();
            words(area, &text, (at[column], i as i32 * 17), 12, if i == 0 { &COLOURS[2] } else { &INK })?;
        }
    }
    Ok(())
}

/// A value as Grafana writes it.
pub(crate) fn shown(value: f64, unit: &str) -> String {
    let scaled = |steps: &[(f64, &str)]| {
        let (size, name) =
            steps.iter().find(|(size, _)| value.abs() >= *size).or(steps.last()).copied().unwrap_or((1.0, ""));
        let number = value / size;
        let digits = if number == 0.0 || number.abs() >= 100.0 || number.fract().abs() < 0.005 {
            0
        } else if number.abs() >= 10.0 {
            1
        } else {
            2
        };
        format!("{number:.digits$}{name}")
    };
    match unit {
        "s" => scaled(&[(60.0, " min"), (1.0, " s"), (1e-3, " ms"), (1e-6, " µs"), (1e-9, " ns")]),
        "percentunit" => format!("{:.1} %", value * 100.0),
        "bytes" | "decbytes" => {
            scaled(&[(1_073_741_824.0, " GiB"), (1_048_576.0, " MiB"), (1024.0, " KiB"), (1.0, " B")])
        }
        "Bps" => scaled(&[(1e9, " GB/s"), (1e6, " MB/s"), (1e3, " kB/s"), (1.0, " B/s")]),
        "cps" => scaled(&[(1e3, " k/s"), (1.0, "/s")]),
        "pps" => scaled(&[(1e3, " kp/s"), (1.0, " p/s")]),
        _ => scaled(&[(1e6, " M"), (1e3, " k"), (1.0, "")]),
    }
}
