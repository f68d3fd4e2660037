// Package rounds asks so often, so many milliseconds apart, and prints a line for each answer: `arn ARN`, `ok`, or
// `error WHY`.
package rounds

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Run asks until the rounds are over; the process fails with the last of them.
func Run(ask func() (string, error)) {
	count, _ := strconv.Atoi(os.Args[1])
	pause, _ := strconv.Atoi(os.Args[2])
	failed := false
	for number := range count {
		if number > 0 {
			time.Sleep(time.Duration(pause) * time.Millisecond)
		}
		arn, err := ask()
		failed = err != nil
		switch {
		case failed:
			fmt.Println("error", strings.Join(strings.Fields(err.Error()), " "))
		case arn == "":
			fmt.Println("ok")
		default:
			fmt.Println("arn", arn)
		}
	}
	if failed {
		os.Exit(1)
	}
}
