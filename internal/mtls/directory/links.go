package directory

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Names in the published directory. What begins with two dots is not a user's file, as with Kubernetes' volumes.
const (
	dataLink  = "..data" // the current generation
	prevLink  = "..prev" // the one before
	genPrefix = "..gen-"
	tmpSuffix = "_tmp"
	// asidePrefix is for what someone has put where a link should be; it is kept.
	asidePrefix = "..foreign-"
)

// setLink makes name a link to target, by one rename if there is something already.
func setLink(root *os.Root, name, target string) error {
	if now, err := root.Readlink(name); err == nil && now == target {
		return nil
	}
	tmp := tmpName(name)
	if err := stageLink(root, tmp, target); err != nil {
		return err
	}
	if err := renameOver(root, tmp, name); err != nil {
		root.Remove(tmp)
		return err
	}
	return nil
}

// renameOver renames a link over what is there. A directory, which someone else must have put there, cannot be renamed
// over and is moved aside.
func renameOver(root *os.Root, tmp, name string) error {
	err := root.Rename(tmp, name)
	if err == nil {
		return nil
	}
	if fi, e := root.Lstat(name); e != nil || !fi.IsDir() {
		return err
	}
	return errors.Join(moveAside(root, name), root.Rename(tmp, name))
}

// moveAside keeps what someone else has put where something of ours belongs, under a name that readers do not look at.
func moveAside(root *os.Root, name string) error {
	return root.Rename(name, asidePrefix+strings.TrimLeft(name, ".")+"-"+strconv.FormatInt(time.Now().UnixNano(), 36))
}

// stageLink makes a link in place of one that a crash may have left.
func stageLink(root *os.Root, name, target string) error {
	err := root.Symlink(target, name)
	if errors.Is(err, fs.ErrExist) {
		if err = clearTmp(root, name); err == nil {
			err = root.Symlink(target, name)
		}
	}
	return err
}

// tmpName is where a link is made before it is renamed: out of sight, and recognisable after a crash.
func tmpName(name string) string { return ".." + strings.TrimPrefix(name, "..") + tmpSuffix }

func isTmpName(name string) bool {
	return strings.HasPrefix(name, "..") && strings.HasSuffix(name, tmpSuffix)
}

// clearTmp removes whatever lies at a temporary name.
func clearTmp(root *os.Root, name string) error {
	clearImmutable(root, name)
	return root.RemoveAll(name)
}

func removeIfThere(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func syncRoot(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// userLinks compares the entries of the directory with the links for users that there should be. Only links of our own
// making are unwanted. A directory where a link should be is an error if it has something in it; an empty one is what
// Docker leaves when it finds nothing to bind, and is removed.
//
// ours lists the links we published before: a directory in the place of one was put there by someone else, and is moved
// aside.
func userLinks(root *os.Root, entries, names, ours []string) (missing, unwanted []string, err error) {
	there := make(map[string]bool)
	for _, name := range entries {
		if strings.HasPrefix(name, "..") {
			continue
		}
		wanted := slices.Contains(names, name)
		if target, err := root.Readlink(name); err == nil {
			there[name] = target == dataLink+"/"+name
			if !wanted && strings.HasPrefix(target, dataLink+"/") {
				unwanted = append(unwanted, name)
			}
			continue
		}
		if fi, err := root.Lstat(name); err == nil && fi.IsDir() && wanted {
			err := root.Remove(name)
			if err != nil && slices.Contains(ours, name) {
				err = moveAside(root, name)
			}
			if err != nil {
				return nil, nil, fmt.Errorf("make room for a link: %w", err)
			}
		}
	}
	for _, name := range names {
		if !there[name] {
			missing = append(missing, name)
		}
	}
	return missing, unwanted, nil
}

// repairLinks makes the links for users what they should be.
func repairLinks(root *os.Root, names []string) error {
	entries, err := readNames(root)
	if err != nil {
		return err
	}
	missing, unwanted, err := userLinks(root, entries, names, names)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range missing {
		errs = append(errs, setLink(root, name, dataLink+"/"+name))
	}
	for _, name := range unwanted {
		errs = append(errs, removeIfThere(root, name))
	}
	return errors.Join(errs...)
}
