package main

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/spf13/pflag"

	"sevagent/internal/bootstrap"
	"sevagent/internal/cli"
)

// fromEnvironment sets the flags that were not given from SEVAGENT_BOOTSTRAP_*. Lists are separated by commas; in flags
// too, except --ecs-option and --mtls-issue, which are one value each time. A consumer has commas of its own.
func fromEnvironment(flags *pflag.FlagSet, lookup func(string) (string, bool)) (err error) {
	flags.VisitAll(func(f *pflag.Flag) {
		list, isList := f.Value.(pflag.SliceValue)
		whole := f.Name == "ecs-option" || f.Name == "mtls-issue" // one value each time
		isOption, apart := f.Name == "ecs-option", split
		if f.Name == "mtls-consumer" {
			apart = splitConsumers
		}
		if f.Changed {
			if isList && !whole {
				err = errors.Join(err, list.Replace(apart(list.GetSlice())))
			}
			return
		}
		name := "SEVAGENT_BOOTSTRAP_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := lookup(name)
		if !ok || value == "" {
			return
		}
		values := []string{value}
		switch {
		case isOption:
			values = splitOptions(value)
		case isList && !whole:
			values = apart(values)
		}
		for _, v := range values {
			setErr := flags.Set(f.Name, strings.TrimSpace(v))
			if invalid, ok := errors.AsType[*pflag.InvalidValueError](setErr); ok {
				err = errors.Join(err, cli.InvalidValue(name, invalid))
			} else {
				err = errors.Join(err, setErr)
			}
		}
	})
	return err
}

// split takes lists apart at their commas.
func split(lists []string) (values []string) {
	for _, list := range lists {
		for part := range strings.SplitSeq(list, ",") {
			if part = strings.TrimSpace(part); part != "" {
				values = append(values, part)
			}
		}
	}
	return values
}

// splitConsumers takes apart what has the form NAME=UID:GID=FILE,FILE: of a list, a part without = is one more file.
func splitConsumers(lists []string) (consumers []string) {
	for _, list := range lists {
		first := len(consumers)
		for _, part := range split([]string{list}) {
			if n := len(consumers); n > first && !strings.Contains(part, "=") {
				consumers[n-1] += "," + part
			} else {
				consumers = append(consumers, part)
			}
		}
	}
	return consumers
}

// splitOptions splits a list at its commas: ECS_RESERVED_PORTS=[22,9180],ECS_LOGLEVEL=warn are two. A comma
// before anything but KEY= belongs to the value, and so does one within JSON.
func splitOptions(list string) (options []string) {
	for list = strings.Trim(list, ", "); list != ""; list = strings.Trim(list, ", ") {
		end := len(list)
		for i := valueEnd(list); i < len(list); i++ {
			if list[i] != ',' {
				continue
			}
			key, _, assigns := strings.Cut(strings.TrimLeft(list[i+1:], ", "), "=")
			if assigns && bootstrap.ECSKey.MatchString(key) {
				end = i
				break
			}
		}
		options = append(options, strings.TrimSpace(list[:end]))
		list = list[end:]
	}
	return options
}

// valueEnd returns where the JSON of the first option ends, or 0 if its value is not JSON.
func valueEnd(list string) int {
	key, value, _ := strings.Cut(list, "=")
	if value == "" || !strings.ContainsAny(value[:1], "{[") {
		return 0
	}
	dec := json.NewDecoder(strings.NewReader(value))
	if dec.Decode(new(json.RawMessage)) != nil {
		return 0
	}
	return len(key) + 1 + int(dec.InputOffset())
}
