// Package visibletest fills values with text that would paint a terminal or a page, and looks for it in what a program
// prints.
package visibletest

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// Hostile has one of each kind: an escape sequence that clears the screen, a line of its own, a carriage return, C1
// (CSI, as terminals with UTF-8 take it), DEL, an override of the direction, an isolate, a character of no width, a
// separator of lines, a byte order mark, a tag character, a Hangul filler, markup, and a byte that is no UTF-8.
const Hostile = "x\x1b[2J\nverdict pass\r\u009b31m\x7f\u202eevil\u2066\u200b\u2028\ufeff\U000e0041\u3164<b>\xff"

// Fill sets every string that v, a pointer, leads to: with text instead of it, or with one element where there is none.
func Fill(v any, text string) { fill(reflect.ValueOf(v).Elem(), text, 0) }

func fill(v reflect.Value, text string, depth int) {
	if depth > 8 { // a type that has itself as a part
		return
	}
	switch v.Interface().(type) {
	case json.RawMessage:
		return
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1_800_000_000, 0)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text, depth+1)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i), text, depth+1)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), text, depth+1)
		fill(v.Index(1), text, depth+1)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, text, depth+1)
		fill(value, text, depth+1)
		v.SetMapIndex(key, value)
	case reflect.Int, reflect.Int64, reflect.Uint32:
		if v.CanInt() {
			v.SetInt(7)
		} else {
			v.SetUint(7)
		}
	}
}

// Check reports what printed must not have: a control or format character other than the line feed, once what is
// allowed is taken out, and a line that data has begun. Where the hostile text is not shown either, it proves nothing.
func Check(t *testing.T, printed string, allowed ...string) {
	t.Helper()
	for _, a := range allowed {
		printed = strings.ReplaceAll(printed, a, "")
	}
	if !strings.Contains(printed, `\u202e`) {
		t.Errorf("the hostile text is not shown, so this proves nothing: %.300q", printed)
	}
	if !utf8.ValidString(printed) {
		t.Errorf("there are bytes that are no UTF-8: %.300q", printed)
	}
	for i, line := range strings.Split(printed, "\n") {
		if strings.HasPrefix(line, "verdict pass") {
			t.Errorf("line %d is one that the data has made: %.300q", i+1, line)
		}
		for _, r := range line {
			if unicode.In(r, unicode.C, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point) {
				t.Errorf("line %d has %U: %.300q", i+1, r, line)
				break
			}
		}
	}
}
