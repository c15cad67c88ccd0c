package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"sevagent/internal/bootstrap"
)

// fromEnvironment sets the flags that were not given from SEVAGENT_BOOTSTRAP_*. Lists, in flags too, are separated by
// commas.
func fromEnvironment(flags *pflag.FlagSet, lookup func(string) (string, bool)) (err error) {
	flags.VisitAll(func(f *pflag.Flag) {
		list, isList := f.Value.(pflag.SliceValue)
		if f.Changed {
			if isList {
				err = errors.Join(err, list.Replace(split(f.Name, list.GetSlice())))
			}
			return
		}
		name := "SEVAGENT_BOOTSTRAP_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := lookup(name)
		if !ok || value == "" {
			return
		}
		values := []string{value}
		if isList {
			values = split(f.Name, values)
		}
		for _, v := range values {
			if setErr := flags.Set(f.Name, strings.TrimSpace(v)); setErr != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", name, setErr))
			}
		}
	})
	return err
}

// split takes lists apart at their commas. In --ecs-option, a comma before anything but KEY= belongs to the value:
// ECS_RESERVED_PORTS=[22,9180],ECS_LOGLEVEL=warn are two.
func split(flag string, lists []string) (values []string) {
	for _, list := range lists {
		first := true
		for part := range strings.SplitSeq(list, ",") {
			key, _, assigns := strings.Cut(strings.TrimSpace(part), "=")
			switch {
			case flag == "ecs-option" && !first && !(assigns && bootstrap.ECSKey.MatchString(key)):
				values[len(values)-1] += "," + part
			case strings.TrimSpace(part) != "":
				values = append(values, strings.TrimSpace(part))
				first = false
			}
		}
	}
	return values
}
