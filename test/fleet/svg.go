package fleet

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// chart is a picture of lines over time.
type chart struct {
	title, x, y string
	lines       []line
	marks       []mark // horizontal
	wide, high  float64
}

type line struct {
	name   string
	points [][2]float64
}

type mark struct {
	name string
	at   float64
}

// Colours that people tell apart who see no red or green (Okabe and Ito).
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"}

const (
	width, height         = 820, 360
	left, right, top, low = 70, 260, 40, 50
)

// svg draws it. The same chart gives the same bytes.
func (c chart) svg() string {
	px := func(x float64) float64 { return left + x/c.wide*(width-left-right) }
	py := func(y float64) float64 { return height - low - y/c.high*(height-top-low) }
	var b strings.Builder
	put := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	text := func(x, y float64, anchor, s string) {
		put(`<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, x, y, anchor, html.EscapeString(s))
	}
	put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" `+
		`font-family="sans-serif" font-size="12" fill="#222">`, width, height, width, height)
	put(`<title>%s</title>`, html.EscapeString(c.title))
	put(`<rect width="%d" height="%d" fill="#fff"/>`, width, height)
	text(left, top-18, "start", c.title)
	text((left+width-right)/2, height-12, "middle", c.x)
	put(`<text transform="translate(16 %d) rotate(-90)" text-anchor="middle">%s</text>`,
		(top+height-low)/2, html.EscapeString(c.y))
	for _, tick := range ticks(c.wide) {
		put(`<path d="M%.1f %dV%d" stroke="#ddd"/>`, px(tick), top, height-low)
		text(px(tick), height-low+16, "middle", number(tick))
	}
	for _, tick := range ticks(c.high) {
		put(`<path d="M%d %.1fH%d" stroke="#ddd"/>`, left, py(tick), width-right)
		text(left-6, py(tick)+4, "end", number(tick))
	}
	for _, m := range c.marks {
		put(`<path d="M%d %.1fH%d" stroke="#222" stroke-dasharray="6 4"/>`, left, py(m.at), width-right)
		text(width-right+8, py(m.at)+4, "start", m.name)
	}
	for i, l := range c.lines {
		colour := colours[i%len(colours)]
		var path strings.Builder
		for k, p := range l.points {
			verb := "L"
			if k == 0 {
				verb = "M"
			}
			fmt.Fprintf(&path, "%s%.1f %.1f", verb, px(p[0]), py(min(p[1], c.high)))
		}
		put(`<path d="%s" fill="none" stroke="%s" stroke-width="2"/>`, path.String(), colour)
		y := float64(240 + 18*i) // below the marks
		put(`<path d="M%d %.1fh18" stroke="%s" stroke-width="3"/>`, width-right+8, y-4, colour)
		text(width-right+32, y, "start", l.name)
	}
	put(`</svg>`)
	return b.String()
}

// ticks returns about five round numbers from 0 to the end of an axis.
func ticks(end float64) (all []float64) {
	step := math.Pow(10, math.Floor(math.Log10(end/5)))
	for _, factor := range []float64{1, 2, 2.5, 5, 10} {
		if end/(step*factor) <= 6 {
			step *= factor
			break
		}
	}
	for i := 0; float64(i)*step <= end; i++ {
		all = append(all, float64(i)*step)
	}
	return all
}
